"""How is the next item made ready while the device works on this one?"""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def ahead(pool: concurrent.futures.Executor, items: Iterable, act: Callable, count: int
          ) -> Iterator[tuple[Any, concurrent.futures.Future]]:
  """(item, future of act(item)) in turn, the next `count` of them begun."""
  futures = collections.deque()
  for item in items:
    futures.append((item, pool.submit(act, item)))
    if len(futures) > count:
      yield futures.popleft()
  yield from futures
