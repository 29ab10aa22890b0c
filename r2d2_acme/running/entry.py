"""Where the process of a node begins: it takes the place of Launchpad's own entry."""

import contextlib
import faulthandler
import os
import signal
import sys
import traceback
from typing import NoReturn

import cloudpickle
from absl import flags
from launchpad.launch import worker_manager

from r2d2_acme import environments
from r2d2_acme.learning import bad_batches
from r2d2_acme.running import workers
from r2d2_acme.system import runtime, stopping
from r2d2_acme.workdir import checkpoint_files, locking

# What would only happen again to the node.
_FINAL = (
  environments.EnvironmentFailed,  # too often, or in the very first reset
  bad_batches.LearningFailed,  # a restored checkpoint was no cure
  checkpoint_files.CheckpointError,
  locking.WorkdirInUse,
)


def main(path: str, index: str):
  """Runs a node; the process ends with it.

  Args:
    path: of the file in which Launchpad has pickled functions.
    index: of the node's function.
  """
  stopping.forgive_streams()
  faulthandler.enable()
  faulthandler.register(signal.SIGUSR2)  # tells where a stuck node is
  flags.FLAGS(['node', '--lp_termination_notice_secs=-1'])  # the launcher counts
  with contextlib.suppress(FileNotFoundError):  # it was removed
    sys.path.append(os.getcwd())  # so that environments there are found
  try:
    with open(path, 'rb') as file:
      function = cloudpickle.load(file)[int(index)]
    # Launchpad's functions for nodes, such as `lp.stop_event`, and its signals.
    worker_manager.WorkerManager(register_in_thread=True)
    function()
  except BaseException as error:
    exit_with(error)
  runtime.exit_now(0)


def exit_with(error: BaseException) -> NoReturn:
  """Ends the process of a node that has failed, with the code that says how."""
  traceback.print_exception(error)
  runtime.exit_now(workers.FINAL_CODE if isinstance(error, _FINAL) else 1)
