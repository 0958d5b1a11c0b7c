"""What can be trained by name: which network, on which data, with which hyperparameters.

    recipe = RECIPES["lenet5"]
    recipe.load().test.inputs           its default data set
    recipe.load("mnist").test.targets   another data set that it can be trained on

Nothing heavy is imported until data are loaded or a network is built, so that listing the
recipes is fast.

To add a network and its recipe:

1. Write the network as an nn.Module in architectures/: inputs in a caller's units; logits
   (classification) or values in the targets' unit (regression) as outputs. `forward` takes the
   tensors of `Split.arrays`, in that order. A module that has a simpler equivalent once its
   weights are fixed returns it from `for_export`.
2. Add a `Recipe` to the module of its family here, with a function that builds the network for
   a data set: sizes, classes and scaling come from the data, never from a constant. Import
   torch inside the function.
3. Give it `tuned` settings for each data set of the catalogue on which it was tuned, the
   default first. All other data are trained with settings by kind and size (defaults.py).
4. A new family is a new module, added to `_FAMILIES` below.

A network that does not learn by gradients needs a learner of its own: see learning/__init__.py.
"""

from neurona_training.recipes import classic, convolutional, deep, feedforward, recurrent
from neurona_training.recipes.recipe import Recipe

_FAMILIES = (classic, feedforward, convolutional, deep, recurrent)  # in historical order

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for family in _FAMILIES for recipe in family.RECIPES
}
