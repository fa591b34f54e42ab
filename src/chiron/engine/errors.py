"""Errors of the engine model; each names the field or the numbers that caused it."""


class EngineError(Exception):
    """Base of every error that the engine model raises on purpose."""


class InvalidRequestError(EngineError, ValueError):
    """A request field has a value that no engine could serve."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class ContextExceededError(InvalidRequestError):
    """Prompt and output together are longer than the model's context."""

    def __init__(self, tokens: int, limit_tokens: int) -> None:
        super().__init__(
            "prompt_tokens",
            f"prompt and output need {tokens} tokens, the context holds {limit_tokens}",
        )
        self.tokens = tokens
        self.limit_tokens = limit_tokens


class KvCapacityExceededError(InvalidRequestError):
    """The request would not fit into the KV cache even if it ran alone."""

    def __init__(self, tokens: int, limit_tokens: int) -> None:
        super().__init__(
            "prompt_tokens",
            f"prompt and output need {tokens} tokens of KV cache, the engine has {limit_tokens}",
        )
        self.tokens = tokens
        self.limit_tokens = limit_tokens


class DuplicateRequestError(InvalidRequestError):
    """A request with this id is already waiting or running."""

    def __init__(self, request_id: int) -> None:
        super().__init__("request_id", f"{request_id} is already waiting or running")


class UnknownRequestError(EngineError, KeyError):
    """No request with this id is waiting or running; it finished, was aborted or never came."""

    def __init__(self, request_id: int) -> None:
        super().__init__(f"request {request_id} is neither waiting nor running")

    def __str__(self) -> str:
        return str(self.args[0])


class InvalidLimitError(EngineError, ValueError):
    """A setting of the engine or of a profile is out of range."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class EngineStateError(EngineError):
    """The operation does not fit the engine's state: asleep, not ready yet, or busy."""


class UnknownProfileError(EngineError, LookupError):
    """No profile of this name is registered."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"unknown engine profile {name!r}; known: {', '.join(known)}")
        self.name = name
        self.known = known
