"""Installs r2d2_acme with exact pins, because only one combination of versions works.

DeepMind's wheels are compiled against each other and against CPython 3.10. Without pins
pip takes numpy 2 and protobuf 6, and imports fail. `requirements.txt` also pins the
transitive packages and is what `make install` installs.
"""

import platform
import sys

from setuptools import find_packages, setup

RUNTIME = [
  'dm-acme==0.4.0',  # the last release on PyPI; needs dm-launchpad 0.5.0
  'dm-launchpad==0.5.0',  # its courier is compiled against TensorFlow 2.8
  'dm-reverb==0.7.3',  # the release for TensorFlow 2.8; 0.8 is for 2.9
  'tensorflow==2.8.4',  # with 2.9 `import launchpad` fails: undefined symbol
  'tensorflow-probability==0.16.0',  # for TensorFlow 2.8; acme.tf.savers imports it
  'keras==2.8.0',  # must have TensorFlow's version
  'tensorboard==2.8.0',  # must have TensorFlow's version
  'protobuf==3.19.6',  # TensorFlow 2.8's generated code breaks on 3.20 and later
  'numpy==1.24.4',  # the wheels are compiled for it; numpy 2 breaks them
  'dm-sonnet==2.0.2',  # networks
  'trfl==1.2.0',  # the copy to the target network
  'dm-env==1.6',  # the environment interface acme speaks
  'dm-tree==0.1.10',  # nested structures
  'gymnasium==1.4.0',  # environments; matches ale-py 0.12
  'ale-py==0.12.1',  # Atari; carries the ROMs
  'opencv-python-headless==4.10.0.84',  # frame resizing; 4.11 and later want numpy 2
  'ml-collections==1.1.0',  # --config.x=y flags
  'absl-py==2.5.1',  # flags, logging
  'matplotlib==3.10.9',  # figures
  'pillow==12.3.0',  # animated GIFs; Matplotlib needs it, too
  'psutil==7.2.2',  # memory and process checks
  'rich==15.0.0',  # tables on the terminal
  'setuptools==80.8.0',  # tensorboard needs pkg_resources, which 82 lacks
]

# jax stays out of the runtime: if it is installed, reverb imports it, which makes
# every worker process larger and slower to start.
ACME_EXTRAS = [
  'jax==0.4.13',  # acme.adders.reverb and acme.datasets import it
  'jaxlib==0.4.13',  # must have jax's version
  'scipy==1.12.0',  # 1.13 breaks jax 0.4.13 at import
  'gym==0.26.2',  # acme.wrappers and acme.tf.networks import it
]

RAY = [
  # 2.49 and later ask for protobuf 3.20.3, which TensorFlow 2.8 does not take.
  'ray==2.48.0',  # programs on several machines
]

WANDB = [
  'wandb==0.25.0',  # --track=wandb; the newest that takes these pins
]

MLFLOW = [
  'mlflow-skinny==3.17.2',  # --track=mlflow
  'databricks-sdk==0.50.0',  # mlflow needs it; newer ones want another protobuf
]

TEST = (
  ACME_EXTRAS
  + RAY
  + [
    'rlax==0.1.7',  # reference values for the losses
    'rliable==1.2.0',  # reference values for aggregates over runs
    'bsuite==0.3.6',  # reference environments
    'pytest==9.2.0',
    'pytest-timeout==2.4.0',  # ends a test whose Reverb call blocks for ever
    'pytest-xdist==3.8.0',  # the whole suite on two cores
    'ruff==0.17.6',  # format and lint
    'mypy==2.4.1',  # types
  ]
)

BENCH = ACME_EXTRAS

# The libraries that TensorFlow 2.8 opens if there is a GPU, see system/cuda.py: for
# systems without CUDA 11. Together they download 1.7 GB and take 2.8 GB on the disk.
GPU = [
  'nvidia-cuda-runtime-cu11==11.8.89',  # libcudart.so.11.0
  'nvidia-cublas-cu11==11.11.3.6',  # libcublas.so.11
  'nvidia-cufft-cu11==10.9.0.58',  # libcufft.so.10
  'nvidia-curand-cu11==10.3.0.86',  # libcurand.so.10
  'nvidia-cusolver-cu11==11.4.1.48',  # libcusolver.so.11
  'nvidia-cusparse-cu11==11.7.5.86',  # libcusparse.so.11
  'nvidia-cudnn-cu11==8.6.0.163',  # libcudnn.so.8
]

# Environments that people bring to a recurrent agent: `pip install -e .[envs]`.
ENVS = [
  'minigrid==3.1.0',  # grid worlds; its MemoryS7 needs memory
  'popgym==1.0.7',  # tasks that need memory, with published baselines
  'vizdoom==1.3.2',  # 3D mazes seen from within
  'box2d==2.3.10',  # Gymnasium's CarRacing
  'pygame-ce==2.5.8',  # draws CarRacing's observations
]


def require_supported_platform():
  """Exits with one line where no wheels exist, before pip fails with a vague error."""
  found = '%s %s' % (platform.system(), platform.machine())
  if found != 'Linux x86_64':
    sys.exit('r2d2_acme needs Linux x86-64 (e.g. a container), this is %s.' % found)
  if sys.version_info[:2] != (3, 10):
    sys.exit(
      'r2d2_acme needs CPython 3.10, this is %s; cure: `make install` finds one, '
      'or says how to get it.' % platform.python_version()
    )


require_supported_platform()
setup(
  name='r2d2-acme',
  version='0.1.0',
  description='Distributed R2D2 on Acme, Reverb, Launchpad and Sonnet',
  license='Apache-2.0',
  python_requires='>=3.10,<3.11',
  packages=find_packages(include=['r2d2_acme', 'r2d2_acme.*']),
  package_data={'r2d2_acme': ['py.typed']},
  install_requires=RUNTIME,
  extras_require={
    'test': TEST,
    'bench': BENCH,
    'ray': RAY,
    'gpu': GPU,
    'envs': ENVS,
    'wandb': WANDB,
    'mlflow': MLFLOW,
  },
)
