"""Where a Hugging Face checkpoint keeps its input-embedding table: which tensor, in which safetensors file.

The model class answers, never a list of names: the class is built without weights, asked for its input
embeddings, and the checkpoint's keys are renamed exactly as transformers renames them on loading. No weight
is read here, and no code from the checkpoint is run (`trust_remote_code` is always False).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from corruption.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SINGLE_FILE: Final = "model.safetensors"
_INDEX_FILE: Final = "model.safetensors.index.json"
_PICKLED_FILES: Final = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_MAX_INDEX_BYTES: Final = 128 * 2**20  # a hundred thousand tensors take about 10 MB
# What a broken config.json can raise, in the parser or in the model class's constructor.
_CONFIG_ERRORS: Final = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class TableLocation(NamedTuple):
    """The embedding table on disk, and the shape (vocabulary, width) that the model class gives it."""

    file: Path
    tensor_name: str
    expected_shape: tuple[int, int]


def locate_table(model: str | Path, revision: str | None = None) -> TableLocation:
    """Find the input-embedding table of a local folder or hub id, fetching as little as is needed.

    Raises:
        CheckpointError: no such checkpoint, no safetensors, or no tensor for the input embeddings.
    """
    files = _Files(model, revision)
    config_file = files.need("config.json")
    weight_map = _weight_map(files)
    skeleton = _skeleton(config_file.parent, files.name)
    parameter_names, expected_shape = _input_embeddings(skeleton, files.name)
    tensor_name = _stored_name(skeleton, parameter_names, weight_map, files.name)
    return TableLocation(files.need(weight_map[tensor_name]), tensor_name, expected_shape)


def one_line(error: BaseException) -> str:
    """The first line of an error's text, for use inside another message."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


class _Files:
    """The files of one checkpoint by name: a local folder, or a hub repository through its local cache."""

    def __init__(self, model: str | Path, revision: str | None) -> None:
        self.name = str(model)
        self._folder = Path(model) if Path(model).is_dir() else None
        self._revision = revision
        self._unreachable: str | None = None
        if self._folder is None and (isinstance(model, Path) or not _looks_like_hub_id(model)):
            raise CheckpointError(f"{model}: no such folder")
        if self._folder is not None and revision is not None:
            raise CheckpointError(f"{model}: a revision ({revision}) is only for hub ids, and this is a local folder")

    def find(self, filename: str) -> Path | None:
        if self._folder is not None:
            path = self._folder / filename
            return path if path.is_file() else None
        return self._download(filename)

    def need(self, filename: str) -> Path:
        path = self.find(filename)
        if path is None:
            raise CheckpointError(f"{self.name}: {filename} is missing{self.why_missing()}")
        return path

    def why_missing(self) -> str:
        return f" (not in the local cache, and not downloaded: {self._unreachable})" if self._unreachable else ""

    def _download(self, filename: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        try:
            path = Path(hf_hub_download(self.name, filename, revision=self._revision))
        except LocalEntryNotFoundError as error:  # offline, or the hub does not answer
            self._unreachable = one_line(error)
            return None
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise CheckpointError(f"{self.name}: {filename} cannot be fetched: {one_line(error)}") from error
        # The cache folder is named after the commit: keep to it, so that all files are of one commit.
        self._revision = path.parent.name
        return path


def _looks_like_hub_id(model: str) -> bool:
    return not model.startswith(("/", ".", "~")) and model.count("/") <= 1


def _weight_map(files: _Files) -> dict[str, str]:
    """Tensor name -> file name, for every tensor of the checkpoint."""
    if (single := files.find(_SINGLE_FILE)) is not None:
        return dict.fromkeys(_tensor_names(single, files.name), _SINGLE_FILE)
    if (index := files.find(_INDEX_FILE)) is not None:
        return _read_index(index, files.name)
    if any(files.find(name) for name in _PICKLED_FILES):
        raise CheckpointError(
            f"{files.name}: only pickled weights (.bin); convert them to safetensors with save_pretrained"
        )
    raise CheckpointError(f"{files.name}: neither {_SINGLE_FILE} nor {_INDEX_FILE} is there{files.why_missing()}")


def _tensor_names(file: Path, model_name: str) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{model_name}: {file.name} is not readable as safetensors: {one_line(error)}") from error


def _read_index(index: Path, model_name: str) -> dict[str, str]:
    if index.stat().st_size > _MAX_INDEX_BYTES:
        raise CheckpointError(f"{model_name}: {index.name} is larger than {_MAX_INDEX_BYTES} bytes")
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{model_name}: {index.name} is not JSON: {one_line(error)}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{model_name}: {index.name} has no weight_map of tensor names to file names")
    for shard in weight_map.values():
        # A name with a folder in it could point anywhere on the machine.
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{model_name}: {index.name} names {shard!r}, which is not a .safetensors file name")
    return weight_map


def _skeleton(folder: Path, model_name: str) -> "PreTrainedModel":
    """The model without weights."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    model_class: Any = AutoModelForCausalLM  # its from_config has no type annotations
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        with torch.device("meta"):
            skeleton: PreTrainedModel = model_class.from_config(config, trust_remote_code=False)
    except (StrictDataclassError, *_CONFIG_ERRORS) as error:
        raise CheckpointError(
            f"{model_name}: not a causal language model that transformers knows: {one_line(error)}"
        ) from error
    return skeleton


def _input_embeddings(skeleton: "PreTrainedModel", model_name: str) -> tuple[list[str], tuple[int, int]]:
    """Names of the input-embedding parameter (its own first, then those tied to it), and its shape."""
    table = skeleton.get_input_embeddings()
    if not isinstance(table, torch.nn.Embedding):
        raise CheckpointError(f"{model_name}: {type(skeleton).__name__} has no plain table of input embeddings")
    own_name = next(f"{name}.weight" for name, module in skeleton.named_modules() if module is table)
    tied: dict[str, str] = skeleton.all_tied_weights_keys  # {parameter: the one it shares}
    source = tied.get(own_name, own_name)
    names = [own_name, source, *(name for name, shared in tied.items() if shared == source)]
    return list(dict.fromkeys(names)), (table.num_embeddings, table.embedding_dim)


def _stored_name(
    skeleton: "PreTrainedModel", parameter_names: list[str], stored: Iterable[str], model_name: str
) -> str:
    """The checkpoint's name for the first of these parameters that it stores."""
    loaded_from = _loading_names(skeleton, stored)
    for parameter in parameter_names:
        if parameter in loaded_from:
            tensor_name, is_converted = loaded_from[parameter]
            if is_converted:
                raise CheckpointError(f"{model_name}: {tensor_name} is not stored as the rows that the model uses")
            return tensor_name
    raise CheckpointError(
        f"{model_name}: no stored tensor loads into the input embeddings, {' or '.join(parameter_names)}"
    )


def _loading_names(skeleton: "PreTrainedModel", stored: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """Parameter -> (stored tensor that transformers loads into it, whether its content is converted)."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    transforms = get_model_conversion_mapping(skeleton)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    parameters = skeleton.state_dict()
    prefix = skeleton.base_model_prefix
    loaded_from: dict[str, tuple[str, bool]] = {}
    # In transformers' own order, since some of its renamings depend on what came before.
    for name in sorted(stored, key=dot_natural_key):
        parameter, converter = rename_source_key(name, renamings, converters, prefix, parameters)
        if parameter not in parameters and name in parameters:
            parameter, converter = rename_source_key(name, [], [], prefix, parameters)
        loaded_from.setdefault(parameter, (name, converter is not None))
    return loaded_from
