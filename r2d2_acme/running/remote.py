"""Nodes on the hosts of a Ray cluster, as the launcher sees them.

Each has a Ray actor, a `RayHost`, which the launcher asks for a report over and over. A
lost actor is replaced by one that Ray places elsewhere. The nodes that know the address
of its node, which is then another one, are started again with the new one.
"""

import contextlib
import functools
import json
import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import ray
from ray import exceptions

from r2d2_acme.running import hosting, workers
from r2d2_acme.running.outputs import Output
from r2d2_acme.system import stopping
from r2d2_acme.workdir import locking
from r2d2_acme.workdir.write_errors import WriteErrors

_POLL_PERIOD = 0.1  # seconds
_RETRY_PERIOD = 1.0  # seconds between calls of a host that cannot be reached
_REPORT_PERIOD = 1.0  # seconds, without news
_MAX_REPORTS = 200  # in a second, of all nodes
_SILENCE = 60.0  # seconds without a report, as where a network is cut for a while
_ANSWER_TIMEOUT = 15.0  # seconds, after which a host is asked again
_CLOSE_TIMEOUT = 10.0  # seconds for all hosts to kill what runs
_RENEWAL_PATIENCE = 15.0  # seconds for a node to save before it is started again


class _Pending(NamedTuple):
  """A call without an answer yet.

  Attributes:
    then, otherwise: see `Calls.send`.
    again: sends it once more.
    until: when to do so, if there is no answer; seconds of the monotonic clock.
  """

  then: Callable[[Any], object]
  otherwise: Callable[[Exception], object]
  again: Callable[[], object]
  until: float


class Calls:
  """Calls of Ray actors whose answers are waited for in one thread.

  Attributes:
    lock: is held while an answer is handled.
  """

  def __init__(self):
    self.lock = threading.RLock()
    self._pending: dict[ray.ObjectRef, _Pending] = {}
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._wait, daemon=True)
    self._thread.start()

  def close(self):
    """Ends the thread; calls whose answers are awaited go on."""
    self._closed.set()
    self._thread.join()

  def send(
    self,
    call: Callable[[], ray.ObjectRef],
    then: Callable[[Any], object],
    otherwise: Callable[[Exception], object],
    timeout: float = math.inf,
  ):
    """Calls an actor, and again while it cannot be reached.

    Args:
      call: makes the call.
      then: is called with the answer, in another thread.
      otherwise: is called with an error, in another thread.
      timeout: seconds without an answer, after which the actor is called again. Where a
        network is cut for a while, an answer can get lost without an error.
    """

    def again():
      self.send(call, then, otherwise, timeout)

    def fail(error: Exception):
      if isinstance(error, exceptions.ActorUnavailableError):
        retry = threading.Timer(_RETRY_PERIOD, again)
        retry.daemon = True
        retry.start()
      else:
        otherwise(error)

    if not self._closed.is_set():
      ref = call()
      until = time.monotonic() + timeout
      with self.lock:
        self._pending[ref] = _Pending(then, fail, again, until)

  def _wait(self):
    while not self._closed.is_set():
      with self.lock:
        refs = list(self._pending)
      if not refs:
        time.sleep(_POLL_PERIOD)
        continue
      ready, _ = ray.wait(refs, timeout=_POLL_PERIOD)
      if ready:
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
      for ref in ready:
        with self._taken(ref) as call:
          self._handle(ref, call)
      now = time.monotonic()
      with self.lock:
        late = [ref for ref, call in self._pending.items() if now > call.until]
      for ref in late:
        with self._taken(ref) as call:
          call.again()

  @contextlib.contextmanager
  def _taken(self, ref: ray.ObjectRef) -> Iterator[_Pending]:
    """Yields a call, which waits no more; prints errors, as other nodes must go on."""
    with self.lock:
      try:
        yield self._pending.pop(ref)
      except Exception:
        traceback.print_exc()

  def _handle(self, ref: ray.ObjectRef, call: _Pending):
    try:
      answer = ray.get(ref)
    except exceptions.RayError as error:
      call.otherwise(error)
    else:
      call.then(answer)


class Fleet:
  """What the nodes of a program on a cluster share.

  Attributes:
    calls: of their hosts.
    nodes: all nodes.
    write_errors: of the files that get what nodes print.
  """

  def __init__(
    self,
    workdir: str | None,
    versions: Mapping[str, str | None],
    on_stop: Callable[[], object],
  ):
    """Has no node yet.

    Args:
      workdir: of the program, which hosts must see.
      versions: of packages, which hosts must have, and of 'python'.
      on_stop: is called when a node asks for the program's end.
    """
    self.calls = Calls()
    self.nodes: list[RemoteWorker] = []
    self.on_stop = on_stop
    self.write_errors = WriteErrors('what nodes print is lost until it can be written')
    self._workdir = workdir
    self._versions = versions

  @property
  def report_period(self) -> float:
    return max(_REPORT_PERIOD, len(self.nodes) / _MAX_REPORTS)

  @property
  def question(self) -> tuple[Sequence[str], str | None, Mapping[str, str]]:
    """The arguments of `RayHost.locate`."""
    packages = [name for name in self._versions if name != 'python']
    env = {x: os.environ[x] for x in (locking.PROGRAM,) if x in os.environ}
    return packages, self._workdir, env

  def environment(self) -> dict[str, str]:
    """Returns environment variables that tell nodes each other's addresses."""
    groups: dict[str, list[str | None]] = {}
    for node in self.nodes:  # in order
      groups.setdefault(node.name.split('/')[0], []).append(node.address)
    hosts = sorted({node.host for node in self.nodes if node.host})
    direct = [os.environ.get('no_grpc_proxy', ''), *hosts]
    return {
      'CLUSTER_SPEC': json.dumps({'cluster': groups}),
      'no_grpc_proxy': ','.join(filter(None, direct)),
    }

  def find_problem(self, host: str, facts: hosting.Facts) -> str:
    """Returns why a host cannot run a node, in one line; '' if it can."""
    where = f'host {host} ({facts.hostname})'
    for name, needed in self._versions.items():
      found = facts.versions[name]
      if found != needed:
        has = f'has {name} {found}' if found else f'has no {name}'
        return f'{where} {has}, but {needed} is needed: run `make install` there'
    if not facts.sees_workdir:
      return (
        f'{where} does not see {self._workdir}: give a --workdir in a folder that all '
        'hosts share, such as NFS'
      )
    return ''

  def announce_move(self, moved: 'RemoteWorker'):
    """Starts those nodes again that have to learn a new address."""
    for node in self.nodes:
      if moved.name in node.servers:
        node.renew(f'must learn that {moved.name} has moved to {moved.address}')

  def close(self):
    """Kills what runs, and gives the hosts back to Ray."""
    self.calls.close()
    actors = [node.actor for node in self.nodes if node.actor is not None]
    with contextlib.suppress(exceptions.RayError):  # the cluster may be gone
      refs = [actor.close.remote() for actor in actors]
      if refs:
        ray.wait(refs, num_returns=len(refs), timeout=_CLOSE_TIMEOUT)
      for actor in actors:
        ray.kill(actor)


class Heartbeat:
  """The beats of a node as its host has reported them, see `heartbeats.Watched`."""

  def __init__(self):
    self.start()

  def start(self):
    self.is_announced = False
    self.has_beaten = False
    self._age = 0.0
    self._reported_at = time.monotonic()

  def note(self, report: hosting.Report):
    """Takes over what a host says."""
    self.is_announced = report.is_announced
    self.has_beaten = report.has_beaten
    self._age = report.seconds_since
    self._reported_at = time.monotonic()

  @property
  def silence(self) -> float:
    """Seconds since the last report."""
    return time.monotonic() - self._reported_at

  @property
  def seconds_since(self) -> float:
    """Seconds since the newest beat; a short silence of the host does not count."""
    return self._age + max(0.0, self.silence - _SILENCE)

  def look(self):
    """Does nothing: reports come by themselves."""

  def excuse(self, seconds: float):
    self._reported_at += seconds


class RemoteWorker:
  """A node on a host of the cluster; a `Worker`.

  Attributes:
    actor: of its host; None while there is none.
    address: of the node's server, which others know even while it is away.
    servers: the names of the nodes whose addresses it knows.
    problem: why its host cannot run it.
  """

  def __init__(
    self,
    name: str,
    fleet: Fleet,
    make_actor: Callable[..., Any],
    output: Output,
    *,
    servers: Collection[str],
    stop_order: int,
  ):
    """Has no host yet.

    Args:
      name: of the node.
      fleet: that it belongs to.
      make_actor: asks Ray for a `RayHost`; its `number` is that of earlier ones.
      output: what it prints goes there.
      servers: the names of the nodes whose addresses it knows.
      stop_order: see `Worker`.
    """
    self.name = name
    self.pid: int | None = None
    self.host = ''
    self.num_starts = 0
    self.is_asked = False
    self.stop_order = stop_order
    self.heartbeat = Heartbeat()
    self.actor: Any = None
    self.address: str | None = None
    self.problem = ''
    self.servers = servers
    self._fleet = fleet
    self._make_actor = make_actor
    self._output = output
    self._code: int | None = None
    self._end = ''
    self._is_located = False
    self._is_due = False  # whether to start once the host is known
    self._renewal = ''  # why it is being started again
    self._num_lines = 0
    self._num_placements = 0
    self._news: tuple = ()

  def place(self):
    """Asks Ray for a host."""
    with self._fleet.calls.lock:
      self._is_located = False
      self._num_lines, self._news = 0, ()
      self.actor = self._make_actor(number=self._num_placements)
      self._num_placements += 1
      self._call('locate', *self._fleet.question, then=self._settle)

  @property
  def is_placed(self) -> bool:
    """Whether it has a host."""
    return self._is_located

  def start(self):
    with self._fleet.calls.lock:
      self.num_starts += 1
      self.is_asked = False
      self._code, self._end, self._renewal = None, '', ''
      self.heartbeat.start()
      self._is_due = True
      if self.actor is None:
        self.place()
      elif self._is_located:
        self._begin()

  def poll(self) -> int | None:
    return self._code

  def ask(self):
    with self._fleet.calls.lock:
      self.is_asked = True
      if self._is_due:  # nothing runs
        self._is_due, self._code = False, 0
      elif self._code is None:
        self._call('ask')

  def interrupt(self):
    if self._code is None:
      self._call('interrupt')

  def kill(self):
    with self._fleet.calls.lock:
      self._is_due = False
      if self.actor is not None and self._is_located:
        self._call('kill')
        if self.heartbeat.silence > _SILENCE:  # its host hangs
          ray.kill(self.actor)

  def renew(self, reason: str):
    """Lets it end, and be started again, if it runs."""
    with self._fleet.calls.lock:
      is_running = bool(self.num_starts) and not self._is_due and self._code is None
      if is_running and not self.is_asked:
        self._renewal = reason
        self._call('stop', _RENEWAL_PATIENCE)

  def describe_end(self) -> str:
    return self._end or 'runs'

  def describe_failure(self, cause: str = '') -> str:
    how = cause or self.describe_end()
    return workers.describe_failure(self.name, f'on {self.host} {how}', self._output)

  def _begin(self):
    self._is_due = False
    env = {**self._fleet.environment(), workers.RESTARTS: str(self.num_starts - 1)}
    self._call('start', self.num_starts, env)

  def _call(
    self,
    method: str,
    *arguments: Any,
    then: Callable[[Any], object] = lambda answer: None,
    timeout: float = math.inf,
  ):
    """Calls the actor; answers and errors of an earlier actor are dropped."""
    actor = self.actor
    if actor is None:
      return

    def answer(handle: Callable[[Any], object], value: Any):
      if actor is self.actor:
        handle(value)

    self._fleet.calls.send(
      lambda: getattr(actor, method).remote(*arguments),
      functools.partial(answer, then),
      functools.partial(answer, self._lose),
      timeout,
    )

  def _settle(self, located: tuple[str, hosting.Facts]):
    """Takes note of where the host is."""
    self.host, facts = located
    self.problem = self._fleet.find_problem(self.host, facts)
    if self.problem:
      self._code, self._end = workers.FINAL_CODE, f'cannot run: {self.problem}'
      return
    before, self.address = self.address, f'{self.host}:{facts.port}'
    self._is_located = True
    self._watch()
    if self._is_due:
      self._begin()
    if before is not None:
      self._fleet.announce_move(self)

  def _watch(self):
    arguments = self._num_lines, self._news, self._fleet.report_period
    self._call(
      'watch', *arguments, then=self._note, timeout=_ANSWER_TIMEOUT + arguments[-1]
    )

  def _note(self, report: hosting.Report):
    """Takes note of what the host says, and asks again."""
    self._num_lines, self._news = report.num_lines, report.news
    self._watch()  # first, for whatever fails below must not end the watching
    if report.lines:
      self._write(report.lines)
    if report.stops_program:
      self._fleet.on_stop()
    if report.start == self.num_starts and not self._is_due:
      self.heartbeat.note(report)
      self.pid = report.pid
      if self._code is None and report.code is not None:
        is_renewed = self._renewal and not self.is_asked
        self._code = 1 if is_renewed else report.code
        self._end = self._renewal if is_renewed else report.end

  def _write(self, lines: Sequence[str]):
    """Adds lines to the node's output; on a full disk they are lost."""
    # An error can come as late as the file is closed.
    with (
      self._fleet.write_errors.reported(),
      open(self._output.path, 'a', encoding='utf-8', errors='backslashreplace') as file,
    ):
      file.writelines(f'{line}\n' for line in lines)

  def _lose(self, error: Exception):
    """Takes note that the host is lost, or could not be had."""
    reason = ' '.join(str(error).split())
    self.actor = None
    self._is_located = False
    if not self.num_starts:
      self.problem = f'{self.name} has found no host: {reason}'
    elif self._code is None:
      self._is_due = False
      self._code, self._end = 1, f'was lost with its host {self.host}'
      stopping.say(f'{self.name}: {reason[:300]}')
