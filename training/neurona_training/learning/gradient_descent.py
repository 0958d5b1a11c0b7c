"""The training loop, for classification and regression."""

import copy
import dataclasses
import math
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from neurona_training.architectures.input_layers import column_spreads
from neurona_training.data import Dataset, Split
from neurona_training.errors import FitError
from neurona_training.learning import devices
from neurona_training.learning.augmentation import augment_images
from neurona_training.learning.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    training_fingerprint,
    weights_digest,
)
from neurona_training.learning.devices import Device
from neurona_training.learning.evaluation import accuracy, predict, rmse
from neurona_training.learning.progress_bar import epoch_summary, progress_bar
from neurona_training.learning.run import Epoch, FitResult, Hyperparameters, Run

_MAX_COMPARED_ROWS = 2000  # training rows that are measured after each epoch
_AUXILIARY_WEIGHT = 0.4  # as the authors of Inception v3 trained it


def fit(
    network: nn.Module,
    data: Dataset,
    hyperparameters: Hyperparameters,
    run: Run,
    device: Device | None = None,
) -> FitResult:
    """Trains the network; the same seed gives the same weights on the same machine.

    After each epoch the network is validated, and the weights with the smallest validation
    loss are kept (`Hyperparameters.keep_epoch`). The checkpoint written then lets a killed run
    continue to the same weights. Each process of torchrun calls this with the same arguments.

    Args:
        network: with fresh weights, on the CPU.
        data: training and validation rows are used.
        hyperparameters: of the loop; `patience` ends it early.
        run: name, seed and checkpoint.
        device: None chooses the GPU if there is one.

    Returns:
        The network with its best weights, and every epoch.

    Raises:
        FitError: no epoch has a finite validation loss, or the checkpoint belongs to another
            training.
        OutputError: the checkpoint cannot be written.
    """
    device = device or devices.best_device()
    network_digest = weights_digest(network)
    network = network.to(device.torch_device)
    optimiser = _make_optimiser(network, hyperparameters)
    scaler = device.gradient_scaler()
    average = _weight_average(network, hyperparameters)
    kept_network = network if average is None else average.module
    class_weights = _class_weights(data, hyperparameters)
    unit = target_unit(data).to(device.torch_device)

    history: list[Epoch] = []
    best_epoch, best_loss, best_weights = 0, math.inf, copy.deepcopy(network.state_dict())
    fingerprint = training_fingerprint(
        data, hyperparameters, run, devices.process_count(), network_digest
    )
    if checkpoint := _load_checkpoint_for_all(run, fingerprint):
        network.load_state_dict(checkpoint.weights)
        optimiser.load_state_dict(checkpoint.optimiser)
        scaler.load_state_dict(checkpoint.scaler)
        if average is not None:
            average.load_state_dict(checkpoint.average)
        history, best_epoch = list(checkpoint.history), checkpoint.best_epoch
        best_loss, best_weights = checkpoint.best_loss, checkpoint.best_weights

    parallel_network = devices.data_parallel(network, device.torch_device)  # the same weights
    is_first = devices.process_rank() == 0
    compared_rows = compared_training_rows(data)
    order = torch.arange(len(data.train))
    steps = len(_batches(order, hyperparameters.batch_rows, network))
    with progress_bar(
        run.name, hyperparameters.epochs * steps, len(history) * steps, visible=is_first
    ) as progress:
        for number in range(len(history) + 1, hyperparameters.epochs + 1):
            patience = hyperparameters.patience
            if patience is not None and number - _lowest_loss_epoch(history) > patience:
                break
            train_loss, rate = _train_epoch(
                parallel_network,
                data,
                hyperparameters,
                number,
                seed=run.seed,
                optimiser=optimiser,
                scaler=scaler,
                average=average,
                class_weights=class_weights,
                device=device,
                unit=unit,
                progress=progress,
            )
            validation_loss, metric, training_metric = _validate(
                kept_network,
                data,
                compared_rows,
                unit,
                device,
                hyperparameters.label_smoothing,
                class_weights,
            )
            history.append(
                Epoch(number, train_loss, validation_loss, metric, rate, training_metric)
            )
            is_kept = hyperparameters.keep_epoch == "last" and math.isfinite(validation_loss)
            if is_kept or validation_loss < best_loss:
                best_epoch, best_loss = number, validation_loss
                best_weights = copy.deepcopy(kept_network.state_dict())
            summary = epoch_summary(history[-1], hyperparameters.epochs, data)
            progress.set_postfix_str(summary, refresh=False)
            if is_first:
                for listener in run.listeners:
                    listener(history[-1])
            if is_first and run.checkpoint:
                state = Checkpoint(
                    fingerprint=fingerprint,
                    history=tuple(history),
                    best_epoch=best_epoch,
                    best_loss=best_loss,
                    best_weights=best_weights,
                    weights=network.state_dict(),
                    optimiser=optimiser.state_dict(),
                    scaler=scaler.state_dict(),
                    average={} if average is None else average.state_dict(),
                )
                save_checkpoint(state, run.checkpoint)

    if not best_epoch:
        raise FitError(
            f"validation loss is {history[-1].validation_loss} after {len(history)} epochs "
            "(expected a finite number; try a smaller learning rate)"
        )
    network.load_state_dict(best_weights)
    for tensor in network.state_dict().values():
        # Statistics of batch normalisation differ between processes.
        devices.broadcast_in_place(tensor)
    return FitResult(network.to("cpu").eval(), best_epoch, best_loss, tuple(history))


def target_unit(data: Dataset) -> Tensor:
    """The unit in which the loss of a regression is: each value's standard deviation.

    So no value counts more than another because its numbers are larger, and the loss of
    predicting the mean is 1.

    Returns:
        float32 of shape (values,); ones for a classification.
    """
    if data.is_classification:
        return torch.ones(1)
    return torch.from_numpy(column_spreads(data.train.targets).astype(np.float32))


def loss(
    outputs: Tensor,
    targets: Tensor,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    unit: Tensor | None = None,
) -> Tensor:
    """Mean loss over rows.

    Args:
        outputs: logits of shape (rows, classes), or values of shape (rows, values).
        targets: int64 class indices of shape (rows,) for the cross-entropy; other targets,
            float of shape (rows, values), for the squared error.
        smoothing: label smoothing of the cross-entropy.
        class_weights: (classes,), by which each row's cross-entropy is multiplied; None: 1.
        unit: of the squared error, (values,); None leaves values as they are.
    """
    if targets.dtype == torch.int64 and class_weights is not None:
        errors = functional.cross_entropy(
            outputs, targets, label_smoothing=smoothing, reduction="none"
        )
        # Not torch's own weights: they divide by the sum over the batch, which takes away the
        # weight of a batch's only class.
        return (errors * class_weights.to(outputs.device)[targets]).mean()
    if targets.dtype == torch.int64:
        return functional.cross_entropy(outputs, targets, label_smoothing=smoothing)
    if unit is None:
        return functional.mse_loss(outputs, targets)
    return functional.mse_loss(outputs / unit, targets / unit)


def _loss_of_all(
    outputs: Tensor | tuple[Tensor, ...],
    targets: Tensor,
    smoothing: float,
    class_weights: Tensor | None,
    unit: Tensor,
) -> Tensor:
    """The loss, and a part of that of each auxiliary classifier behind the first output."""
    if isinstance(outputs, Tensor):
        return loss(outputs.float(), targets, smoothing, class_weights, unit)
    first, *auxiliary = (
        loss(one.float(), targets, smoothing, class_weights, unit) for one in outputs
    )
    return first + _AUXILIARY_WEIGHT * torch.stack(auxiliary).sum()


def _keep_statistics(network: nn.Module) -> None:
    """Leaves batch normalisations as they are whose weights do not learn."""
    for module in network.modules():
        frozen = not any(weight.requires_grad for weight in module.parameters())
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and frozen:
            module.eval()


def rate_factor(step: int, steps: int, hyperparameters: Hyperparameters) -> float:
    """Fraction of the largest learning rate at step number `step` of `steps`, from 0."""
    warm_up_steps = hyperparameters.warm_up * steps
    if step < warm_up_steps:
        return (step + 1) / (warm_up_steps + 1)
    if hyperparameters.schedule == "constant":
        return 1.0
    progress = (step - warm_up_steps) / (steps - warm_up_steps)
    if hyperparameters.schedule == "linear":
        return 1 - progress
    return (1 + math.cos(math.pi * progress)) / 2


def _train_epoch(
    network: nn.Module,
    data: Dataset,
    hyperparameters: Hyperparameters,
    number: int,
    *,
    seed: int,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    average: AveragedModel | None,
    class_weights: Tensor | None,
    device: Device,
    unit: Tensor,
    progress: "tqdm[NoReturn]",
) -> tuple[float, float]:
    """Trains on every row once; returns the mean loss and the last learning rate."""
    network.train()
    _keep_statistics(network)
    generator = _seed_epoch(seed, number)
    inputs = [torch.from_numpy(array) for array in data.train.arrays]
    targets = torch.from_numpy(data.train.targets)
    order = torch.randperm(len(targets), generator=generator)
    batches = _batches(order, hyperparameters.batch_rows, network)
    total_steps = hyperparameters.epochs * len(batches)
    total_loss = torch.zeros((), device=device.torch_device)
    rate = 0.0
    for step, batch in enumerate(batches, start=(number - 1) * len(batches)):
        batch_inputs = [array[batch] for array in inputs]
        if hyperparameters.augmentation is not None:
            batch_inputs[0] = augment_images(
                batch_inputs[0], hyperparameters.augmentation, generator
            )
        # Each of several processes takes a share of the batch.
        share, weight = devices.batch_share(len(batch))
        batch_targets = targets[batch][share].to(device.torch_device)

        optimiser.zero_grad()
        with device.autocast():
            shares = [array[share].to(device.torch_device) for array in batch_inputs]
            outputs = _outputs_in_training(network, shares)
        smoothing = hyperparameters.label_smoothing
        error = _loss_of_all(outputs, batch_targets, smoothing, class_weights, unit) * weight
        scaler.scale(error).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(network.parameters(), hyperparameters.gradient_clip_norm)
        rate = hyperparameters.learning_rate * rate_factor(step, total_steps, hyperparameters)
        for group in optimiser.param_groups:
            group["lr"] = rate
        scaler.step(optimiser)
        scaler.update()
        if average is not None:
            average.update_parameters(getattr(network, "module", network))  # of several processes

        total_loss += error.detach() * len(batch)
        progress.update()
    return devices.average_in_place(total_loss).item() / len(targets), rate


def _outputs_in_training(network: nn.Module, inputs: list[Tensor]) -> Any:
    """Runs the network.

    Raises:
        FitError: batch normalisation would need more than one row.
    """
    try:
        return network(*inputs)
    except ValueError as error:
        if len(inputs[0]) == 1 and "more than 1 value per channel" in str(error):
            raise FitError(
                "batch is of one row: batch normalisation has no variance of one (expected "
                "2 training rows and --batch-rows 2, or more)"
            ) from error
        raise


def _batches(order: Tensor, rows: int, network: nn.Module) -> list[Tensor]:
    """Divides rows into batches.

    Batch normalisation has no variance of one row: for it, one that is left over goes to the batch
    before.
    """
    batches = list(torch.split(order, rows))
    is_normalised = any(
        isinstance(one, nn.modules.batchnorm._BatchNorm) for one in network.modules()
    )
    if is_normalised and rows > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def _lowest_loss_epoch(history: list[Epoch]) -> int:
    """The number of the epoch with the lowest validation loss so far; 0 without one."""
    finite = [epoch for epoch in history if math.isfinite(epoch.validation_loss)]
    return min(finite, key=lambda epoch: epoch.validation_loss).number if finite else 0


def compared_training_rows(data: Dataset) -> Split:
    """Training rows that are measured beside the validation rows: as many, 2000 at most."""
    count = min(len(data.train), len(data.validation), _MAX_COMPARED_ROWS)
    # From the whole part: the first rows of a series are its oldest.
    rows = np.linspace(0, len(data.train) - 1, count).astype(np.int64)
    lengths = data.train.lengths
    return dataclasses.replace(
        data.train,
        inputs=data.train.inputs[rows],
        targets=data.train.targets[rows],
        lengths=None if lengths is None else lengths[rows],
        extra_inputs=tuple(array[rows] for array in data.train.extra_inputs),
    )


def _validate(
    network: nn.Module,
    data: Dataset,
    compared_rows: Split,
    unit: Tensor,
    device: Device,
    smoothing: float,
    class_weights: Tensor | None,
) -> tuple[float, float, float]:
    """Returns loss, metric (accuracy or RMSE) and training metric, by process 0 for all.

    The loss is the one that training minimises: with another smoothing, the weights that it
    ranks best would be early ones.
    """
    measured = torch.zeros(3, dtype=torch.float64, device=device.torch_device)
    if devices.process_rank() == 0:
        outputs = predict(network, data.validation, device.torch_device)
        targets = data.validation.targets
        measured[0] = loss(outputs, torch.from_numpy(targets), smoothing, class_weights, unit.cpu())
        measure = accuracy
        if not data.is_classification:
            measure = partial(rmse, scales=data.error_scales)
        measured[1] = measure(outputs.numpy(), targets)
        trained = predict(network, compared_rows, device.torch_device)
        measured[2] = measure(trained.numpy(), compared_rows.targets)
    validation_loss, metric, training_metric = devices.broadcast_in_place(measured).tolist()
    return validation_loss, metric, training_metric


def _make_optimiser(network: nn.Module, hyperparameters: Hyperparameters) -> torch.optim.Optimizer:
    weights, rate = network.parameters(), hyperparameters.learning_rate
    decay = hyperparameters.weight_decay
    if hyperparameters.optimiser == "sgd":
        return torch.optim.SGD(weights, rate, hyperparameters.momentum, weight_decay=decay)
    return torch.optim.AdamW(weights, rate, weight_decay=decay)


def _weight_average(network: nn.Module, hyperparameters: Hyperparameters) -> AveragedModel | None:
    """Returns a copy of the network for the average of its weights, if one is wanted."""
    decay = hyperparameters.weight_average
    if not decay:
        return None
    average_parameters = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(network, multi_avg_fn=average_parameters, use_buffers=True)


def _class_weights(data: Dataset, hyperparameters: Hyperparameters) -> Tensor | None:
    """Returns (classes,) weights with which each class has the same part in the loss."""
    if hyperparameters.class_weights is None:
        return None
    counts = np.bincount(data.train.targets, minlength=len(data.labels))
    is_present = counts > 0
    weights = np.where(is_present, len(data.train) / np.maximum(counts, 1) / is_present.sum(), 0.0)
    return torch.from_numpy(weights.astype(np.float32))


def _seed_epoch(seed: int, epoch: int) -> torch.Generator:
    """Seeds torch's global generator, for dropout, and returns one for order and augmentation.

    Both are seeded for each epoch, so that an epoch after a checkpoint is as it would have
    been without the interruption. Every process has the same order, and a dropout of its own.
    """
    shared_seed, process_seed = np.random.SeedSequence((seed, epoch)).generate_state(2)
    torch.manual_seed(int(process_seed) + devices.process_rank())
    return torch.Generator().manual_seed(int(shared_seed))


def _load_checkpoint_for_all(run: Run, fingerprint: str) -> Checkpoint | None:
    """Process 0 reads the checkpoint for all: other machines do not have the file."""
    if run.checkpoint is None or not run.resume:
        return None
    is_first = devices.process_rank() == 0
    checkpoint = load_checkpoint(run.checkpoint, fingerprint) if is_first else None
    return devices.broadcast_object(checkpoint)
