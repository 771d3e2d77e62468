"""What published YAMLs say in other words than this project."""

# Published target -> ours: where it lies in a package file, which is empty here, or beside a class it is built upon.
TARGETS = {
    "ldm.models.diffusion.ddpm.LatentDiffusionSRTextWTFFHQ": "ldm.models.diffusion.faces.LatentDiffusionSRTextWTFFHQ",
    "ldm.modules.losses.LPIPSWithDiscriminator": "ldm.modules.losses.perceptual.LPIPSWithDiscriminator",
}
