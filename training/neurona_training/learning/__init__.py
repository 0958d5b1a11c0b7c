"""How a network learns, on which devices, and how well it does afterwards.

run                 what every learner takes and returns: hyperparameters, run, result
gradient_descent    the training loop, the learner of most recipes
classic_rules       learners without a gradient: fixed weights, Rosenblatt, Widrow and Hoff
competitive         the learner of the neocognitron
devices             GPU, mixed precision and several processes
checkpoint          what an interrupted training resumes from
augmentation        random shifts and rotations of training images
evaluation          predictions and metrics
calibration         a temperature for probabilities that are as sure as they are right
populations         whether validation and test rows look like one population
progress_bar        the progress bar and the status line

To add a learner, for a network that does not learn by gradients: write a function in a module
of its own with the signature of `run.Learner` and give it to `Recipe.learner`. It gets a
network with fresh weights, the data, the hyperparameters and the run (seed, checkpoint), and
returns a `FitResult`. It draws its random numbers from `run.seed` alone, so that it can be
repeated; `torch.no_grad()` keeps autograd out of rules that need none. `learn_by_gradient`
(recipes/recipe.py) shows how its module is imported only when it learns.
"""
