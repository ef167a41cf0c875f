"""What the files in hf_mae_robust/launch_configs/ tell the processes of a run: `accelerate launch` itself takes longer
than a small run."""

from tests.processes import ROOT

LAUNCH_CONFIGS = ROOT / "hf_mae_robust" / "launch_configs"


def environment_of(name: str, *words: str) -> dict[str, str]:
    """The variables that `accelerate launch --config_file NAME *words` gives to each process, and the module that makes
    them work on a CPU, for `tests.runs.run`."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    given = ["--config_file", str(LAUNCH_CONFIGS / name), "--num_processes", "2", "--main_process_port", "0", *words]
    parsed, defaults, _ = _validate_launch_command(launch_command_parser().parse_args([*given, "script.py"]))
    if parsed.use_deepspeed:
        parsed.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)  # as `launch_command` does
        environment = prepare_deepspeed_cmd_env(parsed)[1]
    else:
        environment = prepare_multi_gpu_env(parsed)
    found = {key: value for key, value in environment.items() if key.startswith(("ACCELERATE_", "FSDP_"))}
    if parsed.use_fsdp:
        found["IMPORT"] = "tests.fsdp_on_cpu.sitecustomize"
    if parsed.use_deepspeed:
        found |= {"IMPORT": "tests.deepspeed_uncompiled", "DS_ACCELERATOR": "cpu"}
    return found
