"""One step's gradient from the losses of several tasks: the host, and seeds that have a say.

A batch of n samples is *attributed*: a[i,k] is task k's share of sample i. Its loss is
L_k = 1/n Σ_i a[i,k]·l_i, with the job's losses l_i of single samples, so that Σ L_k is their mean;
its gradient is g_k, its weight w_k follows from the stage of its seed. With the handler ``none``
every parameter gets the gradient of Σ w_k·L_k, in one backward pass. Any other handler gets the g_k
of the *shared* parameters, those that no seed owns, and settles their conflicts; a seed's own get
g_k of its task alone.
"""

from tolaria_bus.tolaria.engine.aggregation.handlers import NONE, Handler, UnknownHandler, find
from tolaria_bus.tolaria.engine.aggregation.tasks import TaskGradients

__all__ = ["NONE", "Handler", "TaskGradients", "UnknownHandler", "find"]
