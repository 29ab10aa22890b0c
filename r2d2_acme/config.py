"""Every hyperparameter, once: `R2D2Config` and its presets.

"Paper" is Kapturowski et al., "Recurrent Experience Replay in Distributed
Reinforcement Learning" (2019), table 2 and section 2.3 unless said otherwise.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class R2D2Config:
  """Hyperparameters of R2D2. The defaults are the paper's.

  A *step* is one agent decision (4 raw Atari frames). A *window* is one replay
  item: up to `burn_in_length` steps of context, then `trace_length` trained steps.

  Raises:
    ValueError: one line that names the fields that contradict each other.
  """

  # Windows.
  burn_in_length: int = 40  # steps; paper: 40
  trace_length: int = 80  # trained steps; paper: 80
  sequence_period: int = 40  # steps between the starts of windows; paper: 40
  frame_stack: int = 4  # frames per observation, images only; paper: 4

  # Recurrent state at a window's start: 'stored' (paper) or 'zero'. Trajectory
  # replay is 'zero' with a trace_length that covers the longest episode.
  state_strategy: str = 'stored'

  # Loss.
  discount: float = 0.997  # gamma; paper: 0.997
  n_step: int = 5  # steps; paper: 5
  value_rescaling: bool = True  # False: Q-values in units of reward; paper: yes
  value_rescaling_epsilon: float = 1e-3  # of h; paper: 1e-3
  importance_sampling_exponent: float = 0.6  # beta; paper: 0.6

  # Optimisation.
  batch_size: int = 64  # windows; paper: 64
  learning_rate: float = 1e-4  # Adam; paper: 1e-4
  adam_epsilon: float = 1e-3  # paper: 1e-3
  max_gradient_norm: float = 40.0  # global norm; not in the paper, as in SEED RL
  target_update_period: int = 2_500  # learner steps; paper: 2,500

  # Replay.
  max_replay_size: int = 100_000  # windows; paper: 1e5
  min_replay_size: int = 5_000  # windows before learning starts; paper: 5e3
  # Sampled windows per inserted window. The paper's rates give 0.77: 5 batches/s of
  # 64, against 256 actors x 260 frames/s / 4 frames per step / 40 steps per window.
  samples_per_insert: float = 0.77
  # How far the ratio may stray, as a share of `min_replay_size`; as in Acme.
  samples_per_insert_tolerance: float = 0.1
  priority_exponent: float = 0.9  # paper: 0.9
  priority_eta: float = 0.9  # eta max|td| + (1 - eta) mean|td|; paper: 0.9
  actor_priorities: bool = True  # False: a new window gets 1, as in Acme; paper: yes

  # Acting.
  num_actors: int = 256  # processes; paper: 256
  envs_per_actor: int = 1  # environments that share one network call; paper: 1
  epsilon_base: float = 0.4  # eps_i = base^(1 + alpha i / (N - 1)); Ape-X: 0.4
  epsilon_alpha: float = 7.0  # Ape-X: 7
  # Steps of each of an actor's environments between fetches; paper: 400.
  variable_update_period: int = 400
  evaluator_epsilon: float = 0.001  # Ape-X: 0.001

  # Network (Mnih et al. 2015's torso for images, an MLP for vectors).
  conv_channels: tuple[int, int, int] = (32, 64, 64)  # paper: 32, 64, 64
  torso_size: int = 512  # units after the convolutions, or of the MLP; paper: 512
  # Centre images, and layer-normalise what the LSTM sees of them; paper: no.
  normalize_images: bool = False
  # Of products. 'float32': all of them, in full precision. 'auto': where the machine
  # has no GPU and its CPU multiplies bfloat16, those of the torso for images are
  # bfloat16 in the learner and in actors with many environments. On GPUs from Ampere
  # on, all matrix products and convolutions, also the LSTM's and the head's, are in
  # TensorFloat-32, which rounds their inputs to 10 bits of mantissa; float32 has 23.
  # Elsewhere it is float32.
  torso_dtype: str = 'float32'
  core_size: int = 512  # LSTM units; paper: 512
  head_size: int = 512  # hidden units of each duelling stream; paper: 512
  recurrent: bool = True  # False cuts the LSTM's state: a baseline without memory

  # Environment.
  full_action_space: bool = True  # all 18 Atari actions; paper: yes

  # Evaluation, by the program's evaluator: one episode, a pause, and again.
  evaluation_period: float = 0.0  # seconds of pause; on few cores it costs steps
  # Steps after which an episode is cut off, by `evaluate.py` too. Those of Atari end by
  # themselves after 27,000: 108,000 frames, as in the paper.
  max_evaluation_steps: int = 27_000

  # Run.
  seed: int = 0  # all others derive from it
  checkpoint_period: float = 120.0  # seconds between checkpoints
  # The newest so many are kept, besides the best. Those before the newest are at least
  # a checkpoint_period of the run apart, so that the checkpoint of a stop takes the
  # place of that of the stop before it.
  num_checkpoints: int = 3
  # Hours of the run between older checkpoints that are kept for good; 0: no more are,
  # but a resumed run leaves those that were.
  checkpoint_keep_period: float = 1.0
  # Evaluator episodes; the checkpoint is kept at which their mean return was the best.
  num_best_episodes: int = 10

  def __post_init__(self):
    # Flags and JSON give lists.
    object.__setattr__(self, 'conv_channels', tuple(self.conv_channels))
    for name in _AT_LEAST_ONE:
      _check(getattr(self, name) >= 1, f'{name} must be at least 1', self, name)
    for name in _NOT_NEGATIVE:
      _check(getattr(self, name) >= 0, f'{name} must not be negative', self, name)
    for name in _POSITIVE:
      _check(getattr(self, name) > 0, f'{name} must be positive', self, name)
    for name in _SHARES:
      _check(0 <= getattr(self, name) <= 1, f'{name} must be in [0, 1]', self, name)
    _check(
      self.state_strategy in STATE_STRATEGIES,
      f'state_strategy must be one of {", ".join(STATE_STRATEGIES)}',
      self,
      'state_strategy',
    )
    _check(
      self.torso_dtype in TORSO_DTYPES,
      f'torso_dtype must be one of {", ".join(TORSO_DTYPES)}',
      self,
      'torso_dtype',
    )
    _check(
      len(self.conv_channels) == 3 and min(self.conv_channels) >= 1,
      'conv_channels must be three positive widths',
      self,
      'conv_channels',
    )
    _check(
      self.sequence_period <= self.trace_length,
      'sequence_period must be at most trace_length, or steps between two windows '
      'would never be trained',
      self,
      'sequence_period',
      'trace_length',
    )
    _check(
      self.n_step <= self.trace_length,
      'n_step must be at most trace_length',
      self,
      'n_step',
      'trace_length',
    )
    _check(
      self.min_replay_size <= self.max_replay_size,
      'min_replay_size (windows) must be at most max_replay_size (windows), or '
      'learning never starts',
      self,
      'min_replay_size',
      'max_replay_size',
    )
    # Between "no more inserts" and "no more samples" there must be room for one of
    # each, or the rate limiter blocks both sides for ever.
    _check(
      self.error_buffer >= max(1.0, self.samples_per_insert),
      'the rate limiter would block both sides for ever: raise min_replay_size or '
      'samples_per_insert_tolerance until min_replay_size x samples_per_insert x '
      'samples_per_insert_tolerance is at least max(1, samples_per_insert)',
      self,
      'min_replay_size',
      'samples_per_insert',
      'samples_per_insert_tolerance',
    )

  @property
  def sequence_length(self) -> int:
    """Transitions in a window: burn-in and trace."""
    return self.burn_in_length + self.trace_length

  @property
  def rescaling_epsilon(self) -> float | None:
    """What `losses` takes: None without value rescaling."""
    return self.value_rescaling_epsilon if self.value_rescaling else None

  @property
  def num_environments(self) -> int:
    """Training environments over the whole fleet."""
    return self.num_actors * self.envs_per_actor

  @property
  def error_buffer(self) -> float:
    """Samples by which sampling may run ahead of, or behind, inserting."""
    return (
      self.min_replay_size * self.samples_per_insert_tolerance * self.samples_per_insert
    )


STATE_STRATEGIES = ('stored', 'zero')
TORSO_DTYPES = ('float32', 'auto')

_AT_LEAST_ONE = (
  'trace_length',
  'sequence_period',
  'frame_stack',
  'n_step',
  'batch_size',
  'target_update_period',
  'max_replay_size',
  'min_replay_size',
  'num_actors',
  'envs_per_actor',
  'variable_update_period',
  'max_evaluation_steps',
  'torso_size',
  'core_size',
  'head_size',
  'num_checkpoints',
  'num_best_episodes',
)
_NOT_NEGATIVE = (
  'burn_in_length',
  'value_rescaling_epsilon',
  'importance_sampling_exponent',
  'priority_exponent',
  'epsilon_alpha',
  'evaluation_period',
  'checkpoint_keep_period',
  'seed',
)
_POSITIVE = (
  'learning_rate',
  'adam_epsilon',
  'max_gradient_norm',
  'samples_per_insert',
  'samples_per_insert_tolerance',
  'checkpoint_period',
)
_SHARES = ('discount', 'priority_eta', 'epsilon_base', 'evaluator_epsilon')


def _check(condition: bool, message: str, config: R2D2Config, *names: str):
  if not condition:
    values = ', '.join(f'{name}={getattr(config, name)!r}' for name in names)
    raise ValueError(f'bad configuration: {message} (got {values})')


def paper() -> R2D2Config:
  """The paper's hyperparameters."""
  return R2D2Config()


def laptop() -> R2D2Config:
  """For 2 to 8 CPU cores: the paper's algorithm at a size they can feed.

  Where it is not a matter of size, it is one of learning from a thousandth of the
  paper's data; tuned on Pong.
  """
  return R2D2Config(
    # A learner step costs 1/15 of the paper's: shorter windows, a quarter of the
    # batch, a narrower network.
    burn_in_length=20,
    trace_length=40,
    sequence_period=40,  # each step is trained by exactly one window
    batch_size=16,
    conv_channels=(16, 32, 32),
    torso_size=256,
    core_size=256,
    head_size=256,
    torso_dtype='auto',
    # One core acts at 700 to 1,500 steps/s, so data is dear: each step is trained
    # eight times, as by DQN, which leaves the learner the limit, at about 6 steps/s.
    samples_per_insert=8.0,
    samples_per_insert_tolerance=0.1,
    max_replay_size=10_000,  # 400,000 steps: 20 minutes, some 0.5 GB of Pong
    min_replay_size=250,  # 10,000 steps: from all of 16 environments' first episodes
    # Without it, 12 to 14 of the 16 first filters died, and nothing was learned.
    normalize_images=True,
    # There are tens of thousands of updates, not millions: longer ones, and a target
    # that follows every 20 seconds. Adam's epsilon is below the gradients of the torso
    # and the LSTM, of 1e-4 and less, which 1e-3 would hold back.
    learning_rate=3e-4,
    adam_epsilon=1e-5,
    target_update_period=100,
    discount=0.99,  # values are there after a third of 0.997's updates
    # One process with 16 environments makes one network call for all of them; at
    # batch 1 a step's inference would cost seven times as much.
    num_actors=1,
    envs_per_actor=16,
    # From 0.6 to 0.01; of 16 environments on Ape-X's ladder 9 would hardly explore.
    epsilon_base=0.6,
    epsilon_alpha=8.0,
    full_action_space=False,
    variable_update_period=100,  # 1,600 steps, 3 to 5 seconds
    evaluation_period=60.0,  # an episode takes seconds of a core that the others need
  )


def memory() -> R2D2Config:
  """For memory tasks, and other vectors, in one process on one core; minutes."""
  return R2D2Config(
    # An episode of the tasks with up to 30 steps to remember is one window, so that
    # the gradient reaches from the question back to the cue.
    burn_in_length=0,
    trace_length=40,
    sequence_period=40,
    discount=0.99,
    n_step=3,
    batch_size=32,
    learning_rate=1e-3,
    # Far below the gradients' size: that of the cue, 30 steps back, is tiny at first.
    adam_epsilon=1e-6,
    target_update_period=100,
    torso_size=64,
    core_size=64,
    head_size=64,
    # A step of these environments costs much less than one of the learner's.
    samples_per_insert=8.0,
    max_replay_size=5_000,
    min_replay_size=100,
    num_actors=1,
    envs_per_actor=16,
    epsilon_alpha=3.0,  # down to 0.026: a wrong answer at random hides a right one
    variable_update_period=10,
    evaluation_period=10.0,  # in one process, training waits for it
  )


PRESETS = {'laptop': laptop, 'memory': memory, 'paper': paper}
