"""An independent small causal LM with the target's tokenizer, as in the first speculative decoding papers."""

from backend.drafters.draft_model import DraftModel
from backend.drafters.registry import register
from backend.errors import TreebenchError
from backend.loading import LoadedModel, load_model, same_tokenizer
from backend.model import TreeModel


@register("small_model")
def build(target: TreeModel, loaded: LoadedModel, *, path: str, revision: str | None) -> DraftModel:
    """Load the draft model in the target's dtype, on its device; another tokenizer is refused."""
    dtype = str(target.model.dtype).removeprefix("torch.")
    draft = load_model(path, dtype, str(target.device), revision)
    if not same_tokenizer(draft.tokenizer, loaded.tokenizer):
        raise TreebenchError(
            f"drafter {draft.name} has another tokenizer than target {loaded.name}; "
            "choose a draft model of the same family"
        )
    return DraftModel(draft.name, draft.model, target.vocab_size, ops=target.ops)
