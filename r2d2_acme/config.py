"""All hyperparameters: `R2D2Config` and its presets.

"Paper" is Kapturowski et al., "Recurrent Experience Replay in Distributed
Reinforcement Learning" (2019), table 2 and section 2.3 unless said otherwise.
"Ape-X" is Horgan et al., "Distributed Prioritized Experience Replay" (2018).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any


def _bounded(default: Any, text: str, holds: Callable[[Any], bool]) -> Any:
  """Returns a field that `R2D2Config` refuses unless `holds(value)`.

  Args:
    default: the field's default.
    text: completes the error "<field> must ...".
    holds: returns whether a value is allowed. NaN must not be.
  """
  return dataclasses.field(default=default, metadata={'bound': (text, holds)})


def _at_least_1(default: int) -> Any:
  return _bounded(default, 'be at least 1', lambda value: value >= 1)


def _not_negative(default: float) -> Any:
  return _bounded(default, 'not be negative', lambda value: value >= 0)


def _positive(default: float) -> Any:
  return _bounded(default, 'be positive', lambda value: value > 0)


def _share(default: float) -> Any:
  return _bounded(default, 'be in [0, 1]', lambda value: 0 <= value <= 1)


def _one_of(default: str, *others: str) -> Any:
  values = (default, *others)
  return _bounded(default, f'be one of {", ".join(values)}', values.__contains__)


def _three_widths(*default: int) -> Any:
  return _bounded(
    default,
    'be three positive widths',
    lambda value: len(value) == 3 and min(value) >= 1,
  )


@dataclasses.dataclass(frozen=True)
class R2D2Config:
  """Hyperparameters of R2D2. The defaults are the paper's.

  A *step* is one decision of the agent (4 raw Atari frames). A *window* is one item in
  replay: up to `burn_in_length` steps of context and then up to `trace_length` steps
  that are trained.

  Raises:
    ValueError: a field is out of its bounds, or fields contradict each other. The
      message is one line that names them.
  """

  # Windows.
  burn_in_length: int = _not_negative(40)  # steps; paper: 40
  trace_length: int = _at_least_1(80)  # trained steps; paper: 80
  # Steps from the start of one window to the start of the next; paper: 40.
  sequence_period: int = _at_least_1(40)
  frame_stack: int = _at_least_1(4)  # frames per observation, images only; paper: 4

  # Recurrent state at a window's start: 'stored' (paper) or 'zero'. For the paper's
  # "trajectory replay" take 'zero' and a trace_length that covers the longest episode.
  state_strategy: str = _one_of('stored', 'zero')

  # Loss.
  discount: float = _share(0.997)  # gamma; paper: 0.997
  n_step: int = _at_least_1(5)  # steps; paper: 5
  value_rescaling: bool = True  # False: Q-values in units of reward; paper: True
  value_rescaling_epsilon: float = _not_negative(1e-3)  # epsilon of h; paper: 1e-3
  importance_sampling_exponent: float = _not_negative(0.6)  # beta; paper: 0.6

  # Optimisation.
  batch_size: int = _at_least_1(64)  # windows; paper: 64
  learning_rate: float = _positive(1e-4)  # of Adam; paper: 1e-4
  adam_epsilon: float = _positive(1e-3)  # paper: 1e-3
  max_gradient_norm: float = _positive(40.0)  # global norm; SEED RL: 40, paper: none
  target_update_period: int = _at_least_1(2_500)  # learner steps; paper: 2,500
  # GPUs that learn from a share of each batch; 0 or 1: one device, which may be a CPU.
  learner_devices: int = _not_negative(1)

  # Replay.
  max_replay_size: int = _at_least_1(100_000)  # windows; paper: 1e5
  min_replay_size: int = _at_least_1(5_000)  # windows before learning; paper: 5e3
  # Servers that share the windows, which are sampled as one table; paper: 1. An
  # environment writes to one of them. The sizes are totals.
  num_replay_shards: int = _at_least_1(1)
  # Sampled windows per inserted window. The paper's rates give 0.77: 5 batches/s of
  # 64, against 256 actors x 260 frames/s / 4 frames per step / 40 steps per window.
  samples_per_insert: float = _positive(0.77)
  # How far that ratio may stray, as a share of `min_replay_size`; Acme: 0.1.
  samples_per_insert_tolerance: float = _positive(0.1)
  priority_exponent: float = _not_negative(0.9)  # paper: 0.9
  priority_eta: float = _share(0.9)  # eta max|td| + (1 - eta) mean|td|; paper: 0.9
  actor_priorities: bool = True  # False: new windows get 1, as in Acme; paper: True

  # Acting.
  num_actors: int = _at_least_1(256)  # processes; paper: 256
  envs_per_actor: int = _at_least_1(1)  # they share one network call; paper: 1
  epsilon_base: float = _share(0.4)  # eps_i = base^(1 + alpha i / (N - 1)); Ape-X: 0.4
  epsilon_alpha: float = _not_negative(7.0)  # Ape-X: 7
  # Steps that each environment takes between two fetches of parameters; paper: 400.
  variable_update_period: int = _at_least_1(400)
  # Actor processes that share a cacher: a node that fetches the parameters from the
  # learner every two seconds and passes them on. 0: there is none, and each actor
  # fetches from the learner.
  actors_per_cacher: int = _not_negative(0)
  evaluator_epsilon: float = _share(0.001)  # Ape-X: 0.001

  # Network: the torso of Mnih et al. 2015 for images, an MLP for vectors.
  conv_channels: tuple[int, int, int] = _three_widths(32, 64, 64)  # paper: 32, 64, 64
  torso_size: int = _at_least_1(512)  # units of the torso's last layer; paper: 512
  # 'my_module:make_torso', a function from the spec of the network's inputs to a Sonnet
  # module, which replaces the torso; see `Experiment.torso_factory`.
  torso: str = ''
  # Whether to centre images and to layer-normalise the torso's output; paper: False.
  normalize_images: bool = False
  # Precision of matrix products and convolutions.
  # 'float32': full precision everywhere.
  # 'auto': depends on the machine. Without a GPU, and on a CPU that multiplies
  # bfloat16, the torso for images uses bfloat16 in the learner and in actors with many
  # environments. On GPUs from Ampere on, the whole network uses TensorFloat-32, which
  # rounds the factors to 10 bits of mantissa (float32 has 23). Otherwise float32.
  torso_dtype: str = _one_of('float32', 'auto')
  core_size: int = _at_least_1(512)  # LSTM units; paper: 512
  head_size: int = _at_least_1(512)  # hidden units of each duelling stream; paper: 512
  recurrent: bool = True  # False cuts the LSTM's state: a baseline without memory

  # Atari games, in training and in evaluation; other environments refuse what is not
  # the default. A protocol is a set of these fields, see `ATARI`.
  full_action_space: bool = True  # all 18 Atari actions; paper: True
  # The probability, in each frame, that the emulator repeats the action before. With 0
  # games are deterministic. Machado et al. 2018: 0.25; paper: 0.
  sticky_actions: float = _share(0.0)
  # Frames after which an episode is cut off, as a truncation; paper: 108,000.
  max_episode_frames: int = _at_least_1(108_000)
  # Each episode starts with 1 … max_noops frames without an action; paper: 30.
  max_noops: int = _not_negative(30)
  frame_skip: int = _at_least_1(4)  # frames per step, which share an action; paper: 4
  # The discount of a step that loses a life, while the episode goes on. With 0 the
  # learner's values end there, as in Mnih et al. 2015; paper: 1.
  life_loss_discount: float = _share(1.0)

  # Rewards, of any environment. Whether the network and the learner see them clipped to
  # [-1, 1], as in Mnih et al. 2015; logs and evaluations have them as they are.
  clip_rewards: bool = False  # paper: False

  # Actions, or combinations of a MultiDiscrete's; each step of a batch has a Q-value
  # for each of them.
  max_actions: int = _at_least_1(10_000)

  # Evaluation. The program's evaluator plays an episode, pauses, and plays again.
  # Seconds of pause. On few cores, evaluation takes time from acting and learning.
  evaluation_period: float = _not_negative(0.0)
  # Steps after which the evaluator and `evaluate.py` cut an episode off. Atari episodes
  # end by themselves after max_episode_frames, by default 27,000 steps; if those are
  # more steps, a note at the start says so.
  max_evaluation_steps: int = _at_least_1(27_000)
  # Seconds between videos of the evaluator's episodes; 0 for none.
  video_period: float = _not_negative(0.0)

  # Run.
  seed: int = _not_negative(0)  # all other seeds derive from it
  checkpoint_period: float = _positive(60.0)  # seconds between checkpoints
  # Seconds between checkpoints of the replay. A full one of the paper's size has some
  # 20 GB.
  replay_checkpoint_period: float = _positive(600.0)
  # Number of recent checkpoints to keep, besides the best. All but the newest are at
  # least a checkpoint_period of the run apart, so that a run which is stopped and
  # resumed often does not keep several checkpoints of nearly the same moment.
  num_checkpoints: int = _at_least_1(3)
  # Hours of the run between older checkpoints that are kept for good. 0 keeps no
  # further ones, and a resumed run leaves those that an earlier start kept.
  checkpoint_keep_period: float = _not_negative(1.0)
  # Evaluator episodes per mean return. The checkpoint with the best mean is kept.
  num_best_episodes: int = _at_least_1(10)

  # What happens when something fails. A node that ends, or makes no progress for
  # progress_timeout seconds, is started again, at most max_restarts times in
  # restart_period seconds; 0 ends the program at a node's first failure.
  max_restarts: int = _not_negative(5)
  restart_period: float = _positive(600.0)  # seconds
  progress_timeout: float = _positive(120.0)  # seconds
  # Environment failures of an actor or the evaluator in an hour that only cost the
  # running episode.
  max_environment_failures: int = _not_negative(20)
  # Batches in a row with a gradient that is not finite, after which the newest
  # checkpoint is restored.
  max_bad_batches: int = _at_least_1(10)

  def __post_init__(self):
    # Flags and JSON give lists.
    object.__setattr__(self, 'conv_channels', tuple(self.conv_channels))
    for field in dataclasses.fields(self):
      if 'bound' in field.metadata:
        text, holds = field.metadata['bound']
        value = getattr(self, field.name)
        self._check(holds(value), f'{field.name} must {text}', field.name)
    self._check(
      self.sequence_period <= self.trace_length,
      'sequence_period must be at most trace_length, or steps between two windows '
      'would never be trained',
      *('sequence_period', 'trace_length'),
    )
    self._check(
      self.n_step <= self.trace_length,
      'n_step must be at most trace_length',
      *('n_step', 'trace_length'),
    )
    self._check(
      self.batch_size % max(1, self.learner_devices) == 0,
      'batch_size (windows) must be a multiple of learner_devices, which learn from '
      'equal shares of a batch',
      *('batch_size', 'learner_devices'),
    )
    self._check(
      self.min_replay_size <= self.max_replay_size,
      'min_replay_size (windows) must be at most max_replay_size (windows), or '
      'learning never starts',
      *('min_replay_size', 'max_replay_size'),
    )
    self._check(
      self.frame_skip <= self.max_episode_frames,
      'an Atari episode must hold at least one step: frame_skip must be at most '
      'max_episode_frames',
      *('frame_skip', 'max_episode_frames'),
    )
    self._check(
      self.num_replay_shards <= self.num_environments,
      'num_replay_shards must be at most num_actors x envs_per_actor, or a shard would '
      'stay empty',
      *('num_replay_shards', 'num_actors', 'envs_per_actor'),
    )
    self._check(
      self.num_replay_shards <= self.max_replay_size,
      'num_replay_shards must be at most max_replay_size (windows)',
      *('num_replay_shards', 'max_replay_size'),
    )
    # The rate limiter needs room for one insert and for one sample between its two
    # bounds, or it blocks both sides for ever.
    self._check(
      self.error_buffer >= max(1.0, self.samples_per_insert),
      'the rate limiter would block both sides for ever: raise min_replay_size or '
      'samples_per_insert_tolerance until min_replay_size x samples_per_insert x '
      'samples_per_insert_tolerance is at least max(1, samples_per_insert)',
      *('min_replay_size', 'samples_per_insert', 'samples_per_insert_tolerance'),
    )

  def _check(self, condition: bool, message: str, *names: str):
    """Raises ValueError with the values of these fields unless `condition`."""
    if not condition:
      values = ', '.join(f'{name}={getattr(self, name)!r}' for name in names)
      raise ValueError(f'bad configuration: {message} (got {values})')

  @property
  def sequence_length(self) -> int:
    """Transitions in a window: `burn_in_length` + `trace_length`."""
    return self.burn_in_length + self.trace_length

  @property
  def rescaling_epsilon(self) -> float | None:
    """The epsilon for `learning.losses`: None if values are not rescaled."""
    return self.value_rescaling_epsilon if self.value_rescaling else None

  @property
  def num_environments(self) -> int:
    """Training environments of all actors together."""
    return self.num_actors * self.envs_per_actor

  @property
  def num_cachers(self) -> int:
    """Cachers that all actors need, the last of which may have fewer."""
    if not self.actors_per_cacher:
      return 0
    return math.ceil(self.num_actors / self.actors_per_cacher)

  @property
  def atari(self) -> dict[str, Any]:
    """The fields of Atari environments, as `environments.make_atari` takes them."""
    return {
      'full_action_space': self.full_action_space,
      'sticky_actions': self.sticky_actions,
      'max_episode_frames': self.max_episode_frames,
      'max_noops': self.max_noops,
      'frame_skip': self.frame_skip,
      'life_loss_discount': self.life_loss_discount,
    }

  @property
  def atari_protocol(self) -> str:
    """The protocol of `ATARI` that is nearest, and the fields that are other."""

    def others(name: str) -> list[str]:
      protocol = ATARI[name].items()
      pairs = ((field, getattr(self, field), value) for field, value in protocol)
      return [f'{field}={now!r}' for field, now, value in pairs if now != value]

    name = min(ATARI, key=lambda name: len(others(name)))
    return ', '.join([name, *others(name)])

  @property
  def error_buffer(self) -> float:
    """Samples by which sampling may run ahead of inserting, or behind it."""
    return (
      self.min_replay_size * self.samples_per_insert_tolerance * self.samples_per_insert
    )


_PAPER_PROTOCOL = {**R2D2Config().atari, 'clip_rewards': False}
# Protocols of Atari games by name; each has the same fields of the config.
ATARI: Mapping[str, Mapping[str, Any]] = {
  'paper': _PAPER_PROTOCOL,
  # Mnih et al., "Human-level control through deep reinforcement learning" (2015), with
  # the limit of 30 minutes of van Hasselt et al. (2016) and later work.
  'dqn': _PAPER_PROTOCOL
  | {'full_action_space': False, 'life_loss_discount': 0.0, 'clip_rewards': True},
  # Machado et al., "Revisiting the Arcade Learning Environment" (2018). Their limit is
  # 5 minutes; 30 are Dopamine's and those of the scores that results are compared with.
  'sticky': _PAPER_PROTOCOL | {'sticky_actions': 0.25, 'max_noops': 0},
}


def paper() -> R2D2Config:
  """The paper's hyperparameters."""
  return R2D2Config()


def laptop() -> R2D2Config:
  """The paper's algorithm at a size that 2 to 8 CPU cores can feed.

  Values that do not concern size are for learning from a thousandth of the paper's
  data. They were tuned on Pong.
  """
  return R2D2Config(
    # Shorter windows, a quarter of the batch and a narrower network make a learner
    # step 15 times cheaper than the paper's.
    burn_in_length=20,
    trace_length=40,
    sequence_period=40,  # each step is trained by exactly one window
    batch_size=16,
    conv_channels=(16, 32, 32),
    torso_size=256,
    core_size=256,
    head_size=256,
    torso_dtype='auto',
    # One core acts at 700 to 1,500 steps/s, so data is scarce. Each step is trained
    # eight times, as DQN does, and the learner is the bottleneck at about 6 steps/s.
    samples_per_insert=8.0,
    samples_per_insert_tolerance=0.1,
    max_replay_size=10_000,  # 400,000 steps: 20 minutes and about 0.5 GB of Pong
    min_replay_size=250,  # 10,000 steps: the first episodes of all 16 environments
    # Without it, 12 to 14 of the 16 filters of the first layer died on Pong, and the
    # agent learned nothing.
    normalize_images=True,
    # There are tens of thousands of updates, not millions: the steps are larger, and
    # the target network is updated every 20 seconds. The gradients of the torso and the
    # LSTM are 1e-4 and less; an Adam epsilon of 1e-3 would hold them back.
    learning_rate=3e-4,
    adam_epsilon=1e-5,
    target_update_period=100,
    discount=0.99,  # values need a third of the updates that they need with 0.997
    # One process calls the network once for all 16 environments. With one environment
    # per call, inference would cost seven times as much per step.
    num_actors=1,
    envs_per_actor=16,
    # From 0.6 down to 0.01. On Ape-X's ladder, 9 of 16 environments hardly explore.
    epsilon_base=0.6,
    epsilon_alpha=8.0,
    full_action_space=False,
    variable_update_period=100,  # 1,600 steps, 3 to 5 seconds
    evaluation_period=60.0,  # an episode takes a core from the others for seconds
    replay_checkpoint_period=120.0,  # a full replay has 0.5 GB
  )


def memory() -> R2D2Config:
  """For memory tasks and other vectors: minutes of training on one core."""
  return R2D2Config(
    frame_stack=1,  # grids and images: what is past, the LSTM is to remember
    # A window holds a whole episode of the tasks with up to 30 steps to remember, so
    # that the gradient reaches from the question back to the cue.
    burn_in_length=0,
    trace_length=40,
    sequence_period=40,
    discount=0.99,
    n_step=3,
    batch_size=32,
    learning_rate=1e-3,
    # Far below the gradients: that of the cue, 30 steps back, is tiny at first.
    adam_epsilon=1e-6,
    target_update_period=100,
    conv_channels=(16, 32, 32),
    torso_size=64,
    core_size=64,
    head_size=64,
    # A step of these environments costs much less than a learner step.
    samples_per_insert=8.0,
    max_replay_size=5_000,
    min_replay_size=100,
    num_actors=1,
    envs_per_actor=16,
    epsilon_alpha=3.0,  # down to 0.026: random answers hide what the policy has learned
    variable_update_period=10,
    evaluation_period=10.0,  # in one process, training waits for the evaluation
    replay_checkpoint_period=60.0,
  )


PRESETS = {'laptop': laptop, 'memory': memory, 'paper': paper}
