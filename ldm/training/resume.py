"""What a user may change when a run is resumed: all that is used then; the rest is refused by name."""

from basicsr.utils.errors import UserError
from ldm.config import Config, KeyPath

WEIGHTS = "the checkpoint's own weights are used"
PROCESS = "the checkpoint's weights were trained for the other value"
STATE = "the checkpoint's state is that of the other value"
# Keys whose change a resumed run would ignore, or mix with the checkpoint's state, and why.
REFUSED: dict[KeyPath, str] = {
    ("model", "target"): PROCESS,
    ("model", "params", "ckpt_path"): WEIGHTS,
    ("model", "params", "ignore_keys"): WEIGHTS,
    ("model", "params", "first_stage_config", "params", "ckpt_path"): WEIGHTS,
    ("model", "params", "cond_stage_config", "params", "ckpt_path"): WEIGHTS,
    ("model", "params", "parameterization"): PROCESS,
    ("model", "params", "timesteps"): PROCESS,
    ("model", "params", "time_replace"): PROCESS,
    ("model", "params", "linear_start"): PROCESS,
    ("model", "params", "linear_end"): PROCESS,
    ("model", "params", "scale_factor"): PROCESS,
    ("model", "params", "use_ema"): STATE,
    ("model", "params", "unfrozen_diff"): STATE,
    ("model", "params", "logvar_init"): STATE,
    ("model", "params", "edge_loss_type"): STATE,
    ("model", "params", "edge", "loss_type"): STATE,
}


def check_changes(saved: Config, config: Config) -> None:
    """Compare a resumed run's config with the one that it was saved with.

    Raises:
        UserError: one line for each change that would have no effect or spoil the state.
    """
    lines = []
    for path, why in REFUSED.items():
        if path[-1] == "ckpt_path" and config.get("model.params.save_trainable_only"):
            continue  # the files are used, and their content is compared
        was, now = saved.get(".".join(path)), config.get(".".join(path))
        if path[-1] in ("edge_loss_type", "loss_type") and "adversarial" not in (was, now):
            continue  # formulas have no state
        if was != now:
            problem = f"cannot change from {was!r} to {now!r} when resuming: {why}; leave it, or start a new run with"
            lines.append(f"{config.error(path, problem)} model.params.ckpt_path=CHECKPOINT")
    if lines:
        raise UserError("\n".join(lines))
