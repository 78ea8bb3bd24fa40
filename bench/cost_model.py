"""The program cost model beside published step times: our step of the same model, compiled for the same chips.

    make bench-cost-model          (installs libtpu, the TPU compiler)

The published systems ran their own programs; ours is compiled for the same model, batch and chips, with the policy of
recomputation that they published, or that memory asks for (`pomona/plan/published.py`). Constants of the cost model are
those of `pomona/core/chips.py` and `pomona/plan`, none fitted to a case. The last line is JSON: predicted over
published, minus one.
"""

import json
import sys


def main():
    """Compiles each case, or takes it from the cache, and prints the comparison."""
    from pomona.plan.topology import prepare_environment

    prepare_environment()
    from pomona.plan.published import PUBLISHED
    from pomona.plan.verify import verify

    cases = []
    for case in PUBLISHED:
        found = verify(case.comparable, case.stage, case.fleet, None)
        error = found.step_seconds / case.seconds - 1
        causal, full = found.mfu()
        print(
            f"{case.name}: published {case.seconds:.2f} s, predicted {found.step_seconds:.2f} s ({error:+.0%}), "
            f"MFU {causal:.0%} causal, {full:.0%} full, {found.compiled.hbm_bytes / 2**30:.0f} GiB",
            file=sys.stderr,
        )
        cases.append(
            {
                "name": case.name,
                "published_seconds": round(case.seconds, 3),
                "predicted_seconds": round(found.step_seconds, 3),
                "error": round(error, 3),
            }
        )
    worst = max((case["error"] for case in cases), key=abs)
    print(json.dumps({"cases": cases, "worst_error": worst}))


if __name__ == "__main__":
    main()
