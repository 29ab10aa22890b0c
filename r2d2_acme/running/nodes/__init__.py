"""The nodes of the distributed agent, which know of no launcher.

A node gets a `Run`, handles of other nodes, and what tells it to stop. Its constructor
builds its parts, and `run` works until the stop. `program.py` makes Launchpad nodes of
them.
"""

from r2d2_acme.running.nodes.cacher import CacherNode
from r2d2_acme.running.nodes.learner import LearnerNode
from r2d2_acme.running.nodes.playing import ActorNode, EvaluatorNode
from r2d2_acme.running.nodes.replay import ReplayNode

__all__ = ['ActorNode', 'CacherNode', 'EvaluatorNode', 'LearnerNode', 'ReplayNode']
