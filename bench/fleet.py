"""Apple's two runs and the parent, compiled for their fleets on this machine: fit, step time, MFU, days, dollars.

    make fleet                     (installs libtpu, the TPU compiler; minutes a program, a few GB of memory)

Every stage of `afm_server` (8192 TPU v4 chips), of `afm_device` with the distillation target in its core stage, and of
`afm_device_parent` (2048 TPU v5p chips), with the meshes of the recipes. Writes docs/benchmarks/fleet.json, prints a
table, and last one line of JSON. Programs are kept in the user's cache: a second run compiles only what has changed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPES: dict[str, list[str]] = {  # and what is set besides: Apple's device model was distilled in its core stage
    "afm_server": [],
    "afm_device": ["objective:distillation"],
    "afm_device_parent": [],
}
KEYS = (
    *("name", "chip", "chips", "slices", "stage", "fits", "hbm_gib", "hbm_limit_gib", "step_seconds"),
    *("exposed_communication_seconds", "mfu_causal", "mfu_full", "days", "usd"),
)


def main():
    """Verifies one recipe after the other, each in a process of its own: the compiler's memory goes back in between."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    arguments = parser.parse_args()
    records = []
    for name in arguments.only:
        command = [sys.executable, "-m", "pomona.cli.main", "plan", name, "--verify", "--json", *RECIPES[name]]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}; its error stands above")
        records += json.loads(done.stdout)
    rounded = [{key: round(r[key], 4) if isinstance(r[key], float) else r[key] for key in KEYS} for r in records]
    if set(arguments.only) == set(RECIPES):
        (ROOT / "docs/benchmarks/fleet.json").write_text(json.dumps(rounded, indent=1) + "\n")
    print("| recipe | chips | stage | HBM GiB | step | exposed | MFU causal | MFU full | days | USD |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for r in rounded:
        room = f"{r['hbm_gib']:.1f} of {r['hbm_limit_gib']:.1f}" + ("" if r["fits"] else ", DOES NOT FIT")
        print(
            f"| {r['name']} | {r['chips']} {r['chip']} | {r['stage']} | {room} | {r['step_seconds']:.3f} s "
            f"| {r['exposed_communication_seconds']:.3f} s | {100 * r['mfu_causal']:.1f} % "
            f"| {100 * r['mfu_full']:.1f} % | {r['days']:.1f} | {r['usd'] / 1e6:.2f} M |"
        )
    print(json.dumps(rounded))


if __name__ == "__main__":
    main()
