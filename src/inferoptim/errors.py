"""The error tree: what a caller may catch, and what a person reads.

Every error that a user can cause carries one line: what is wrong, where, and what to do. The command line
prints that line and exits with the class's status; a traceback appears only with ``--debug``.
"""

from __future__ import annotations


class InferOptimError(Exception):
    """Root of every error that this package raises on purpose."""

    exit_status = 1


class ConfigError(InferOptimError):
    """A plan, option or file contradicts itself or cannot be read. Nothing was started."""

    exit_status = 2


class UnsupportedError(InferOptimError):
    """The request is well formed, but this machine, model or build cannot do it."""

    exit_status = 3


class RequestError(InferOptimError):
    """One request is invalid (a prompt longer than the context, a NaN temperature). The engine goes on."""

    exit_status = 2


class CapacityError(InferOptimError):
    """Memory, disk or queue room is missing; the message says how much and which setting would fit."""

    exit_status = 4


class EngineDeadError(InferOptimError):
    """The engine (or its worker process) stopped; requests in flight are lost and reported as such."""

    exit_status = 5


class DataError(InferOptimError):
    """A file read or fetched is truncated, tampered with or not what it claims to be."""

    exit_status = 6
