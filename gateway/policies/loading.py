"""From verified bundles to policies that a guard can use. Blocking, for a thread."""

from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from classifiers import DEFAULT_ENCODER, Encoder, resolve_encoder
from classifiers.encoders.runtime import Device
from classifiers.encoders.tokens import TokenClassifier
from corruption import EmbeddingRows
from gateway.policies.folder import Wanted
from guard import LoadedPolicy, PolicyBundle, PolicyMismatchError, check_model, load_policy
from guard.classification import FeatureCache


@dataclass(slots=True)
class PolicyLoader:
    """Loads policies for one model; what is loaded already is not read again.

    Attributes:
        rows: the model's embedding rows.
        encoder: what the heads share; None until a policy has one.
        features: what is known of texts, whatever the policies are.
    """

    rows: EmbeddingRows
    device: Device = "cpu"
    encoder: Encoder | None = None
    features: FeatureCache = field(default_factory=FeatureCache)
    _encoder_name: str = ""
    _loaded: dict[str, LoadedPolicy] = field(default_factory=dict)
    _token_classifiers: dict[str, TokenClassifier] = field(default_factory=dict)

    @classmethod
    def open(cls, args: Namespace, device: Device) -> "PolicyLoader":
        """For the model that vLLM's arguments name."""
        return cls(EmbeddingRows.open(args.model, revision=args.revision), device)

    def load(self, bundle: PolicyBundle, *, at_start: bool = False) -> LoadedPolicy:
        """Load a bundle, and check that it belongs to the model and to the encoder of the others.

        Raises:
            PolicyMismatchError, ClassifierError: it does not, or its classifier's files cannot be used.
        """
        if bundle.digest not in self._loaded:
            check_model(bundle, hidden_size=self.rows.hidden_size, embedding_digest=self.rows.digest())
            encoder = self._encoder_for(bundle, at_start) if bundle.config.classifier.kind == "head" else self.encoder
            self._loaded[bundle.digest] = load_policy(
                bundle,
                encoder,
                hidden_size=self.rows.hidden_size,
                embedding_digest=self.rows.digest(),
                token_classifiers=self._token_classifiers,
                device=self.device,
            )
            if encoder is not self.encoder:
                self.encoder, self._encoder_name = encoder, bundle.config.classifier.encoder
        return self._loaded[bundle.digest]

    def load_all(self, wanted: Iterable[Wanted], *, at_start: bool = False) -> list[LoadedPolicy]:
        """Load policies, each as it is to act.

        Raises:
            PolicyMismatchError, ClassifierError: as `load`.
        """
        loaded = [(self.load(one.bundle, at_start=at_start), one.config) for one in wanted]
        return [replace(policy, bundle=replace(policy.bundle, config=config)) for policy, config in loaded]

    def forget_all_but(self, policies: Sequence[LoadedPolicy]) -> None:
        """Let go of what no policy uses."""
        used = {policy.bundle.digest for policy in policies}
        self._loaded = {digest: policy for digest, policy in self._loaded.items() if digest in used}
        if not any(policy.head is not None for policy in policies):
            self.encoder, self._encoder_name = None, ""
        finders = {id(policy.finder) for policy in policies if policy.finder is not None}
        if not finders:
            self._token_classifiers.clear()

    def _encoder_for(self, bundle: PolicyBundle, at_start: bool) -> Encoder:
        """The shared encoder, opened where it is not yet. A policy that comes later cannot have one fetched."""
        name = bundle.config.classifier.encoder
        if self.encoder is None:
            if name != DEFAULT_ENCODER and not at_start:
                raise PolicyMismatchError(
                    f"{bundle.path}: classifier.encoder: {name} is not loaded; start the server with such a policy"
                )
            return Encoder.open(resolve_encoder(name), device=self.device)
        if name != self._encoder_name:
            raise PolicyMismatchError(
                f"{bundle.path}: classifier.encoder: {name}, where the other policies use {self._encoder_name}; "
                "build them with one"
            )
        return self.encoder
