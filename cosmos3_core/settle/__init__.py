"""From a wish to everything that is decided before a weight is read, once, for every client.

settled = settle(Wish(model="embedded", given={"prompt": "a cup", "frames": 9}))
engine = Engine(settled.model, settled.plan)
state = engine.start(settled.request)
"""

from .settle import Ground, Settled, ground_of, place_of, settle
from .wish import Wish

__all__ = ["Ground", "Settled", "Wish", "ground_of", "place_of", "settle"]
