"""AFM-server: trained from scratch by three stages.

    pomona life afm_server
    pomona train afm_server            8192 TPU v4 chips, 6.3 T + 1 T + 0.1 T tokens

Hardware: 8 slices of 1024 chips. Size, layers and widths are OUR assumption; Apple publishes the vocabulary and the
number of key-value heads. The server model is served as it was trained: its life has one chapter.
"""

from pomona.model.presets import AFM_SERVER
from pomona.parallel.config import MeshConfig
from pomona.recipes.afm import afm, core, later
from pomona.recipes.life import Life, Train
from pomona.train.config import Run

BATCH_SIZE = 4096
LOSS_CHUNK_TOKENS = 2048
"""All of a device: of several chunks the embedding has a gradient each, 3.4 GB, when the most is kept."""


def afm_server() -> Run:
    """AFM-server at an assumed 69 B parameters: 8192 TPU v4 chips in 8 slices."""
    # A checked step needs a second state, 1.5 GiB, for which `ffn` leaves no room on v4; `gate` would.
    meshes = MeshConfig(data=8, seq=4), MeshConfig(data=8, seq=8, tensor=2)
    stages = (core(BATCH_SIZE), *later(BATCH_SIZE, meshes, ("gate", "attention")))
    return afm("afm_server", AFM_SERVER, stages, MeshConfig(data=8, seq=2), "ffn", None, LOSS_CHUNK_TOKENS)


LIFE = Life(
    name="afm_server",
    what="AFM-server: core, continued, long context",
    chapters=(Train("server", "afm_server"),),
    server="server",
    device=None,
    prompt="The most important thing about",
)
