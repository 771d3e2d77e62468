"""What published YAMLs say in other words than this project."""

# Published target -> ours: where the published name lies in a package file, which is empty here.
TARGETS = {
    "ldm.modules.losses.LPIPSWithDiscriminator": "ldm.modules.losses.perceptual.LPIPSWithDiscriminator",
}
