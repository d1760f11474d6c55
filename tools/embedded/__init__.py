"""The embedded model: a Cosmos3 of 12 M parameters, trained on a world of coloured shapes. README.md says how."""
