"""What PTX instructions compute, written from the text of the PTX ISA and never from the virtual GPU that it checks."""
