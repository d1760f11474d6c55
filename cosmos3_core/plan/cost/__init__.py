"""What a run will take, counted from configs alone: bytes by stage, arithmetic, and from a device's ceilings the time.

Everything follows what the code allocates: `engine.engine` for the order of the stages, `model.transformer` with
`reference.ops` for activations, `model.vae` and `model.vae_blocks` for the VAE. Kernels that fuse need less. Nothing
here imports torch, downloads, or reads a weight. Bytes are bytes, areas count latent or pixel positions of one frame.
"""
