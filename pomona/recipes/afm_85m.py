"""A small AFM, for one GPU or a few TPU chips.

    pomona train afm_85m

Hardware: one H100. Its text is yours, as that of all AFM recipes: data/web, data/code, data/math.
"""

from pomona.model.presets import AFM_85M
from pomona.optim.config import Schedule
from pomona.recipes.afm import afm_data
from pomona.train.config import Evaluation, Run, Stage


def afm_85m() -> Run:
    """A small AFM at 20 tokens per parameter, for one GPU or a few TPU chips."""
    core = Schedule(warmup_steps=500)
    return Run(
        name="afm_85m",
        architecture=AFM_85M,
        data=afm_data(AFM_85M),
        stages=(Stage("core", steps=6000, batch_size=64, sequence_length=4096, schedule=core),),
        evaluation=Evaluation(every_steps=1000),
    )
