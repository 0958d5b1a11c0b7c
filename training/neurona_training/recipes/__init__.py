"""What can be trained by name: which network, on which data, with which hyper-parameters.

    recipe = RECIPES["lenet5"]
    recipe.load().test.inputs           its default data set
    recipe.load("mnist").test.targets   another one that it fits

Nothing heavy is imported until data are loaded or a network is built, so that the command
can list the recipes at once.

To add a network and its recipe:

1. Write the network as an nn.Module in architectures/: plain units in, as a caller sends
   them; logits (classification) or values in the user's units (regression) out. `forward`
   takes the tensors of `Split.arrays`, in that order. A module that has a simpler equal once
   its weights are fixed says so by `for_export`.
2. Add a `Recipe` to the file of its family here, with a function that builds the network for
   the data that it is given: sizes, classes and scaling come from the data, never from a
   constant. Import torch inside the function.
3. Give it `trainings`: hyper-parameters for each data set it was tuned on, the default first.
   A data set of the right kind that is not named is trained as the default is.
4. A new family is a new file, joined below.

The loop in fit.py writes a checkpoint after each epoch, beside the model
(OUT/NAME/checkpoint.pt); `--resume` goes on from it, and a finished run removes it.

To add a learner, for a network that does not learn by gradients: write a function in a file
of its own with the signature of `learning.Learner` and give it to `Recipe.learner`. It gets a
network with fresh weights, the data, the hyper-parameters and the run (seed, checkpoint), and
returns `Fitted`. It draws its chance from `run.seed` alone, so that it can be repeated;
`torch.no_grad()` keeps autograd out of rules that need none. `by_gradient` (recipe.py) shows
how its file is imported only when it learns.
"""

from neurona_training.recipes import classic, convolutional, deep, feedforward, recurrent
from neurona_training.recipes.recipe import Moves, Recipe, Training, by_gradient

__all__ = ["RECIPES", "Moves", "Recipe", "Training", "by_gradient"]

_FAMILIES = (classic, feedforward, convolutional, deep, recurrent)  # as history went

RECIPES = {recipe.name: recipe for family in _FAMILIES for recipe in family.RECIPES}
