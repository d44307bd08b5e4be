"""Language models called from the client: ``llm(messages=[...]).choices[0].message.content``.

Any callable of that shape can be given to an optimizer as ``llm=``; without one the server's own endpoint is asked.  ``LLM()`` talks to an endpoint that
speaks OpenAI's chat completions; see ``environment`` for where it finds one.  Keys are read from the environment and kept out of repr and pickles.
"""

from __future__ import annotations

import email.utils
import json
import os
import time
import types
import urllib.error
import urllib.request
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

__all__ = ["AbstractModel", "LLM", "OpenAICompatible", "LiteLLM", "CustomLLM", "AutoGenLLM", "DummyLLM", "LLMFactory", "environment", "reply_text",
           "auto_construct_oai_config_list_from_env"]

_OPENAI = "https://api.openai.com/v1"


def environment() -> Tuple[str, str, str]:
    """(URL up to /v1, model, key) of the default endpoint; URL "" when none is set.

    First OPTOD_LLM_URL, OPTOD_LLM_MODEL, OPTOD_LLM_KEY; then TRACE_CUSTOMLLM_URL, _MODEL, _API_KEY; then OPENAI_BASE_URL (or OpenAI's own when
    OPENAI_API_KEY is set) with TRACE_LITELLM_MODEL.
    """
    get = os.environ.get
    if get("OPTOD_LLM_URL"):
        return get("OPTOD_LLM_URL", ""), get("OPTOD_LLM_MODEL", ""), get("OPTOD_LLM_KEY", "")
    if get("TRACE_CUSTOMLLM_URL"):
        return get("TRACE_CUSTOMLLM_URL", ""), get("TRACE_CUSTOMLLM_MODEL", "gpt-4o"), get("TRACE_CUSTOMLLM_API_KEY", "")
    if get("OPENAI_BASE_URL") or get("OPENAI_API_KEY"):
        model = get("TRACE_LITELLM_MODEL") or get("DEFAULT_LITELLM_MODEL") or "gpt-4o"
        return get("OPENAI_BASE_URL") or _OPENAI, model.split("/", 1)[-1] if model.startswith("openai/") else model, get("OPENAI_API_KEY", "")
    return "", "", ""


def reply_text(response: Any) -> str:
    """The text of a reply in any of the forms that models give: an object or dict with ``choices``, a list of choices, a text."""
    if isinstance(response, str):
        return response
    if isinstance(response, (list, tuple)) and response:
        return reply_text(response[0])
    choices = response.get("choices") if isinstance(response, Mapping) else getattr(response, "choices", None)
    if choices:
        return reply_text(choices[0])
    message = response.get("message") if isinstance(response, Mapping) else getattr(response, "message", None)
    if message is not None:
        content = message.get("content") if isinstance(message, Mapping) else getattr(message, "content", None)
        return "" if content is None else str(content)
    raise TypeError(f"llm: a reply of type {type(response).__name__} holds no choices[0].message.content")


class AbstractModel:
    """A callable model, made by ``factory()`` and made again when it is older than ``reset_freq`` seconds (None: never)."""

    def __init__(self, factory: Callable, reset_freq: Optional[float] = None) -> None:
        self.factory, self.reset_freq = factory, reset_freq
        self._model = factory()
        self._init_time = time.time()

    @property
    def model(self) -> Callable:
        return self._model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.reset_freq is not None and time.time() - self._init_time > self.reset_freq:
            self._model, self._init_time = self.factory(), time.time()
        return self.model(*args, **kwargs)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_model": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._model = self.factory()


class OpenAICompatible(AbstractModel):
    """Chat completions over HTTP.

    model, base_url, api_key: None = ``environment()``.  timeout: seconds of one try.  max_retries: further tries on 429, 5xx and broken connections, after
    Retry-After or base_delay, 2*base_delay, ... seconds.  RuntimeError: no endpoint is set, or what it answered.
    """

    def __init__(self, model: Optional[str] = None, reset_freq: Optional[float] = None, cache: bool = True, max_retries: int = 10,
                 base_delay: float = 1.0, base_url: Optional[str] = None, api_key: Optional[str] = None, timeout: float = 600.0) -> None:
        self.model_name, self.base_url, self._key = model, base_url, api_key
        self.cache, self.max_retries, self.base_delay, self.timeout = cache, max_retries, base_delay, timeout
        super().__init__(self._make, reset_freq)

    def _make(self) -> Callable:
        return self.create

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_key": None, "factory": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.factory = self._make
        self._model = self._make()

    def create(self, messages: Optional[List[dict]] = None, **options: Any) -> Any:
        """One request; options go into the body as they are (max_tokens, temperature, response_format, n, ...), None values are left out."""
        url, model, key = environment()
        url, model, key = self.base_url or url, self.model_name or model, self._key or key
        if not url:
            raise RuntimeError("llm: no endpoint; set OPTOD_LLM_URL, OPTOD_LLM_MODEL and OPTOD_LLM_KEY, or give the optimizer your own callable")
        body = {"model": options.pop("model", None) or model, "messages": messages, **{k: v for k, v in options.items() if v is not None}}
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        request = urllib.request.Request(url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers)
        return _as_object(self._send(request))

    def _send(self, request: urllib.request.Request) -> Any:
        for attempt in range(self.max_retries + 1):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                text = error.read(2000).decode(errors="replace")
                if attempt == self.max_retries or (error.code != 429 and error.code < 500):
                    raise RuntimeError(f"llm: HTTP {error.code}: {text}") from None
                wait = _retry_after(error.headers.get("Retry-After"))
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                if attempt == self.max_retries:
                    raise RuntimeError(f"llm: {request.full_url}: {error}") from None
                wait = None
            time.sleep(min(60.0, self.base_delay * 2 ** attempt) if wait is None else wait)
        raise AssertionError("not reached")


def _retry_after(value: Optional[str]) -> Optional[float]:
    if not value:
        return None
    try:
        return max(0.0, min(300.0, float(value)))
    except ValueError:
        moment = email.utils.parsedate_to_datetime(value)
        return max(0.0, min(300.0, moment.timestamp() - time.time()))


def _as_object(value: Any) -> Any:
    """JSON whose fields can be read as attributes."""
    if isinstance(value, dict):
        return types.SimpleNamespace(**{k: _as_object(v) for k, v in value.items()})
    return [_as_object(v) for v in value] if isinstance(value, list) else value


class LiteLLM(OpenAICompatible):
    """Model names may carry a provider (``openai/gpt-4o``); requests go to the one endpoint of ``environment()``, which is usually a LiteLLM proxy."""


class CustomLLM(OpenAICompatible):
    """The endpoint of TRACE_CUSTOMLLM_URL, TRACE_CUSTOMLLM_MODEL, TRACE_CUSTOMLLM_API_KEY where they are set."""

    def __init__(self, model: Optional[str] = None, reset_freq: Optional[float] = None, cache: bool = True, **options: Any) -> None:
        options.setdefault("base_url", os.environ.get("TRACE_CUSTOMLLM_URL"))
        options.setdefault("api_key", os.environ.get("TRACE_CUSTOMLLM_API_KEY"))
        super().__init__(model or os.environ.get("TRACE_CUSTOMLLM_MODEL"), reset_freq, cache, **options)


class AutoGenLLM(OpenAICompatible):
    """The first usable entry of a config list ``[{"model":, "api_key":, "base_url":}]``: given, in the file OAI_CONFIG_LIST, or in the variable of that name.

    filter_dict: {field: allowed values}.
    """

    def __init__(self, config_list: Optional[List[dict]] = None, filter_dict: Optional[Mapping[str, Any]] = None,
                 reset_freq: Optional[float] = None) -> None:
        entries = config_list if config_list is not None else _config_list()
        for field, allowed in (filter_dict or {}).items():
            entries = [e for e in entries if e.get(field) in allowed]
        first = entries[0] if entries else {}
        super().__init__(first.get("model"), reset_freq, base_url=first.get("base_url") or (_OPENAI if first.get("api_key") else None),
                         api_key=first.get("api_key"))


def _config_list() -> List[dict]:
    given = os.environ.get("OAI_CONFIG_LIST")
    if given and not os.path.exists(given):
        return json.loads(given)
    path = given or "OAI_CONFIG_LIST"
    if not os.path.exists(path):
        return auto_construct_oai_config_list_from_env()
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def auto_construct_oai_config_list_from_env() -> List[dict]:
    """A config list of the keys that the environment holds."""
    found = []
    if os.environ.get("OPENAI_API_KEY"):
        found.append({"model": "gpt-4o", "api_key": os.environ["OPENAI_API_KEY"], "base_url": os.environ.get("OPENAI_BASE_URL") or _OPENAI})
    return found


class DummyLLM(AbstractModel):
    """A model that answers what ``callable(*args, **kwargs)`` returns: for tests."""

    def __init__(self, callable: Callable, reset_freq: Optional[float] = None) -> None:
        self.callable = callable
        super().__init__(self._make, reset_freq)

    def _make(self) -> Callable:
        def answer(*args: Any, **kwargs: Any) -> Any:
            message = types.SimpleNamespace(content=self.callable(*args, **kwargs))
            return types.SimpleNamespace(choices=[types.SimpleNamespace(message=message)])
        return answer

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "factory": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.factory = self._make
        self._model = self._make()


_BACKENDS = {"LiteLLM": LiteLLM, "AutoGen": AutoGenLLM, "CustomLLM": CustomLLM}


class LLMFactory:
    """Named configurations of models: ``LLM(profile="cheap")``."""

    _profiles: Dict[str, dict] = {
        "default": {"backend": "LiteLLM", "params": {}},
        "premium": {"backend": "LiteLLM", "params": {"model": "gpt-4"}},
        "cheap": {"backend": "LiteLLM", "params": {"model": "gpt-4o-mini"}},
        "fast": {"backend": "LiteLLM", "params": {"model": "gpt-4o-mini"}},
        "reasoning": {"backend": "LiteLLM", "params": {"model": "o1-mini"}},
    }

    @classmethod
    def get_llm(cls, profile: str = "default") -> AbstractModel:
        """ValueError for a profile that is not registered."""
        if profile not in cls._profiles:
            raise ValueError(f"Unknown profile '{profile}'. Available profiles: {list(cls._profiles)}")
        config = cls._profiles[profile]
        return _BACKENDS[config["backend"]](**config["params"])

    @classmethod
    def register_profile(cls, name: str, backend: str, **params: Any) -> None:
        cls._profiles[name] = {"backend": backend, "params": params}

    @classmethod
    def list_profiles(cls) -> List[str]:
        return list(cls._profiles)

    @classmethod
    def get_profile_info(cls, profile: Optional[str] = None) -> Any:
        return cls._profiles if profile is None else cls._profiles.get(profile)


class LLM:
    """``LLM()`` is the model of the environment; ``LLM(profile="cheap")``, ``LLM(backend="CustomLLM")`` another one."""

    def __new__(cls, *args: Any, profile: Optional[str] = None, backend: Optional[str] = None, **kwargs: Any) -> Any:
        if profile:
            return LLMFactory.get_llm(profile)
        name = backend or os.environ.get("TRACE_DEFAULT_LLM_BACKEND", "LiteLLM")
        if name not in _BACKENDS:
            raise ValueError(f"Unknown LLM backend: {name}. Valid options are: {list(_BACKENDS)}")
        return _BACKENDS[name](*args, **kwargs)
