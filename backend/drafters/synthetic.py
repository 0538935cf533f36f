"""The drafter that belongs to a synthetic target."""

from backend.drafters.registry import register
from backend.loading import LoadedModel
from backend.synthetic import SyntheticDrafter, SyntheticTarget


@register("synthetic")
def build(target: SyntheticTarget, loaded: LoadedModel) -> SyntheticDrafter:
    return SyntheticDrafter(target.law)
