"""PTX, to look at what the compiler makes of a source for a GPU that is not there."""

from luce_edu.backends import csrc_dir


def to_ptx(source, arch, defines, csrc=None) -> str:
    """By NVRTC itself: cuda-core asks a driver whether it could load the PTX, and here there is none."""
    from cuda.bindings import nvrtc

    def checked(answer):
        status, *values = answer
        assert status == nvrtc.nvrtcResult.NVRTC_SUCCESS, status
        return values[0] if values else None

    csrc = csrc or csrc_dir()
    program = checked(nvrtc.nvrtcCreateProgram((csrc / source).read_bytes(), source.encode(), 0, [], []))
    options = [f"--gpu-architecture={arch.replace('sm', 'compute')}", "--std=c++17", f"-I{csrc}"]
    options = [option.encode() for option in options + [f"-D{name}={value}" for name, value in defines.items()]]
    checked(nvrtc.nvrtcCompileProgram(program, len(options), options))
    text = b" " * checked(nvrtc.nvrtcGetPTXSize(program))
    checked(nvrtc.nvrtcGetPTX(program, text))
    return text.rstrip(b"\0").decode()
