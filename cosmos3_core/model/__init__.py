"""The model: configuration, positions, packing, the two towers, the VAE and the text side. Names no device."""
