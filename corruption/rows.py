"""Input-embedding rows straight from a Hugging Face checkpoint, without loading the model.

Rows come as the checkpoint stores them: in its dtype and without any scale. Some model classes multiply by a
constant when they embed (Gemma by the root of the hidden size). Policies are expressed in checkpoint units,
so this module never applies one; the server derives the scale at start-up by comparing these rows with the
engine's.

Which tensor holds the table, and in which safetensors file, the model class answers, never a list of names:
the class is built without weights, asked for its input embeddings, and the checkpoint's keys are renamed
exactly as transformers renames them on loading. No code from the checkpoint is run (`trust_remote_code` is
always False).
"""

import hashlib
import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import torch
from torch import Tensor

from console.errors import EcoError, first_line
from corruption.integers import int64_vector

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DTYPES: Final = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_DIGEST_CHUNK_BYTES: Final = 16 * 2**20
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


class CorruptionError(EcoError):
    """Base of this package's errors that are not plain misuse of an argument (TypeError, ValueError)."""


class CheckpointError(CorruptionError):
    """A checkpoint cannot give its input-embedding rows; the message is one line and names the checkpoint."""


class EmbeddingRows:
    """The input-embedding table of one checkpoint, memory-mapped: only the rows that are asked for are read.

    Safe to use from several threads. The file must not be changed while the object lives.

    Attributes:
        vocab_size: rows of the table. May exceed the tokenizer's vocabulary.
        hidden_size: width of the table. Usually the model's hidden size, but the table's own where a model
            projects its embeddings (OPT's `word_embed_proj_dim`).
        dtype: torch dtype of the table, and of the rows given out.
        tensor_name: the tensor's name in the checkpoint.
    """

    def __init__(self, file: Path, tensor_name: str, expected_shape: tuple[int, int]) -> None:
        from safetensors import SafetensorError, safe_open

        table = f"{file}: {tensor_name}"
        try:
            opened: Any = safe_open(str(file), framework="pt")
            self._slice = opened.get_slice(tensor_name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{table} cannot be read: {first_line(error)}") from error
        stored_dtype, shape = self._slice.get_dtype(), tuple(self._slice.get_shape())
        if stored_dtype not in _DTYPES:
            raise CheckpointError(f"{table} is stored as {stored_dtype}; expected {', '.join(_DTYPES)}")
        if len(shape) != 2:
            raise CheckpointError(f"{table} has shape {shape}; an embedding table has two dimensions")
        if shape != expected_shape:
            raise CheckpointError(f"{table} has shape {shape}; the config says {expected_shape}")
        # Mapped, not read: a slice, which reads less at once, copies rows one by one.
        self._table: Tensor = opened.get_tensor(tensor_name)
        self.tensor_name = tensor_name
        self.dtype = _DTYPES[stored_dtype]
        self.vocab_size, self.hidden_size = shape
        self._digest: str | None = None
        self._digest_lock = threading.Lock()

    @classmethod
    def open(cls, model: str | Path, *, revision: str | None = None) -> Self:
        """Open the table of a local folder or a hub id.

        Of a hub repository, the config, the index and the one file with the table are downloaded where they
        are not cached; `HF_HUB_OFFLINE`, `HF_HOME` and `HF_TOKEN` work as in huggingface_hub. `revision` is a
        hub branch, tag or commit.

        Raises:
            CheckpointError: the checkpoint is missing, broken, not in safetensors, or has no such table.
        """
        return cls(*_locate_table(_Files(model, revision)))

    def rows(self, token_ids: Sequence[int] | Tensor) -> Tensor:
        """The rows (T, D) of these token ids, in order, as stored: checkpoint dtype, on the CPU, no scale.

        Raises:
            TypeError: ids that are not integers.
            ValueError: an id outside 0..vocab_size-1.
        """
        ids = int64_vector("token_ids", token_ids)
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if len(outside):
            raise ValueError(f"token_ids: {int(outside[0])} is outside the table's 0..{self.vocab_size - 1}")
        return self._table[ids]

    def digest(self) -> str:
        """sha256 (hex) of the table's dtype, shape and bytes: the identity that a policy bundle records.

        Reads the whole table, in chunks; the first call takes about a second per gigabyte, later ones none.
        """
        with self._digest_lock:
            if self._digest is None:
                sha = hashlib.sha256(f"{self.dtype} {self.vocab_size} {self.hidden_size}\n".encode())
                step = max(1, _DIGEST_CHUNK_BYTES // (self.hidden_size * self.dtype.itemsize))
                for start in range(0, self.vocab_size, step):
                    chunk: Tensor = self._slice[start : start + step]
                    sha.update(chunk.contiguous().view(torch.uint8).numpy().data)
                self._digest = sha.hexdigest()
            return self._digest


class _Files:
    """The files of one checkpoint by name: a local folder, or a hub repository through its local cache."""

    def __init__(self, model: str | Path, revision: str | None) -> None:
        self.name = str(model)
        self._folder = Path(model) if Path(model).is_dir() else None
        self._revision = revision
        self._unreachable: str | None = None
        self._is_reached = False
        may_be_hub_id = isinstance(model, str) and not model.startswith(("/", ".", "~")) and model.count("/") <= 1
        if self._folder is None and not may_be_hub_id:
            raise CheckpointError(f"{model}: no such folder")
        if self._folder is not None and revision is not None:
            raise CheckpointError(f"{model}: a revision ({revision}) is only for hub ids, and this is a local folder")

    def find(self, filename: str) -> Path | None:
        if self._folder is not None:
            path = self._folder / filename
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        try:
            # Where the hub does not answer, a download would try for half a minute before it said so.
            offline = self._unreachable is not None or not self._hub_answers(filename)
            path = Path(hf_hub_download(self.name, filename, revision=self._revision, local_files_only=offline))
        except LocalEntryNotFoundError as error:  # offline, or the hub does not answer
            self._unreachable = self._unreachable or first_line(error)
            return None
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise CheckpointError(f"{self.name}: {filename} cannot be fetched: {first_line(error)}") from error
        # The cache folder is named after the commit: keep to it, so that all files are of one commit.
        self._revision = path.parent.name
        return path

    def _hub_answers(self, filename: str) -> bool:
        """Whether the hub can be reached, asked once for all files; what it answers is the download's to judge."""
        import httpx2  # what huggingface_hub speaks HTTP with, and whose errors it lets through
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        if self._is_reached:
            return True
        try:
            get_hf_file_metadata(hf_hub_url(self.name, filename, revision=self._revision))
        except (httpx2.TransportError, OfflineModeIsEnabled) as error:
            self._unreachable = first_line(error)
            return False
        except HfHubHTTPError:
            pass
        self._is_reached = True
        return True

    def need(self, filename: str) -> Path:
        path = self.find(filename)
        if path is None:
            raise CheckpointError(f"{self.name}: {filename} is missing{self.why_missing()}")
        return path

    def why_missing(self) -> str:
        if not self._unreachable:
            return ""
        why = f"not in the local cache, and the hub does not answer: {self._unreachable}"
        return f" ({why}); check the model's name and the network"


def _locate_table(files: _Files) -> tuple[Path, str, tuple[int, int]]:
    """The file of the input-embedding table, its name there, and the shape (V, D) that the model class gives it.

    Fetches as little as is needed.
    """
    config_file = files.need("config.json")
    weight_map = _weight_map(files)
    skeleton = _skeleton(config_file.parent, files.name)
    table = skeleton.get_input_embeddings()
    if not isinstance(table, torch.nn.Embedding):
        raise CheckpointError(f"{files.name}: {type(skeleton).__name__} has no plain table of input embeddings")
    own_name = next(f"{name}.weight" for name, module in skeleton.named_modules() if module is table)
    tied: dict[str, str] = skeleton.all_tied_weights_keys  # {parameter: the one it shares}
    source = tied.get(own_name, own_name)
    # Its own name first: where both sides of a tie are stored, the input side counts.
    parameters = dict.fromkeys([own_name, source, *(name for name, shared in tied.items() if shared == source)])
    loaded_from = _loading_names(skeleton, weight_map)
    parameter = next((name for name in parameters if name in loaded_from), None)
    if parameter is None:
        raise CheckpointError(
            f"{files.name}: no stored tensor loads into the input embeddings, {' or '.join(parameters)}"
        )
    tensor_name, is_converted = loaded_from[parameter]
    if is_converted:
        raise CheckpointError(f"{files.name}: {tensor_name} is not stored as the rows that the model uses")
    return files.need(weight_map[tensor_name]), tensor_name, (table.num_embeddings, table.embedding_dim)


def _weight_map(files: _Files) -> dict[str, str]:
    """Tensor name -> file name, for every tensor of the checkpoint."""
    from safetensors import SafetensorError, safe_open

    if (single := files.find(_SINGLE_FILE)) is not None:
        try:
            with safe_open(str(single), framework="pt") as opened:
                return dict.fromkeys(opened.keys(), _SINGLE_FILE)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{files.name}: {_SINGLE_FILE} is not readable as safetensors: {first_line(error)}"
            ) from error
    if (index := files.find(_INDEX_FILE)) is None:
        if any(files.find(name) for name in _PICKLED_FILES):
            raise CheckpointError(
                f"{files.name}: only pickled weights (.bin); convert them to safetensors with save_pretrained"
            )
        raise CheckpointError(f"{files.name}: neither {_SINGLE_FILE} nor {_INDEX_FILE} is there{files.why_missing()}")
    where = f"{files.name}: {_INDEX_FILE}"
    if index.stat().st_size > _MAX_INDEX_BYTES:
        raise CheckpointError(f"{where} is larger than {_MAX_INDEX_BYTES} bytes")
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not JSON: {first_line(error)}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{where} has no weight_map of tensor names to file names")
    for shard in weight_map.values():
        # A name with a folder in it could point anywhere on the machine.
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{where} names {shard!r}, which is not a .safetensors file name")
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
            f"{model_name}: not a causal language model that transformers knows: {first_line(error)}"
        ) from error
    return skeleton


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
