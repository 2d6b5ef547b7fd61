"""One implementation for sync and async: a method is written once, as `async def`, and called in both ways.

    class _Greeting:
        @both
        async def greet(self, name: str) -> str: ...

    class Greeting(_Greeting, Blocking): ...            # Greeting().greet("Ada") -> str
    class AsyncGreeting(_Greeting, Asynchronous): ...   # await AsyncGreeting().greet("Ada") -> str

What such a method awaits comes from a transport in the end. That of a blocking client never suspends: it blocks, so
that the coroutine runs to its end in the caller's thread, without an event loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from tritonpress_client.transport import AsyncioTransport, BlockingTransport

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Self = TypeVar("_Self")


class both(Generic[_P, _R]):  # noqa: N801 (a decorator)
    """Makes a method of an `async def`: it returns its result in a blocking client, and is awaited in an async one."""

    def __init__(self, function: Callable[Concatenate[Any, _P], Coroutine[Any, Any, _R]]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> both[_P, _R]: ...
    @overload
    def __get__(self, client: Blocking, owner: type | None = None) -> Callable[_P, _R]: ...
    @overload
    def __get__(self, client: Asynchronous, owner: type | None = None) -> Callable[_P, Coroutine[Any, Any, _R]]: ...
    def __get__(self, client: Any, owner: type | None = None) -> Any:
        if client is None:
            return self
        function, run = self.function, client.transport_class.run

        def method(*args: _P.args, **kwargs: _P.kwargs) -> Any:
            return run(function(client, *args, **kwargs))

        method.__doc__ = function.__doc__
        return method


class Blocking(ABC):
    """A client whose methods return their results; a context manager, safe to share between threads."""

    transport_class = BlockingTransport

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; calls in flight end as `InvalidInputError`. Closing twice does no harm."""
        BlockingTransport.run(self._close())

    @abstractmethod
    async def _close(self) -> None: ...


class Asynchronous(ABC):
    """A client whose methods are awaited; an async context manager. A cancelled task ends its call on the server."""

    transport_class = AsyncioTransport

    async def __aenter__(self: _Self) -> _Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; calls in flight end as `InvalidInputError`. Closing twice does no harm."""
        await self._close()

    @abstractmethod
    async def _close(self) -> None: ...
