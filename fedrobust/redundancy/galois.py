"""Finite fields of any prime-power order, as addition and multiplication tables."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Field:
    """GF(order): ``add[a, b]`` and ``multiply[a, b]`` over the elements 0..order-1.

    An element's base-p digits are the coefficients of its polynomial, lowest degree first.
    """

    order: int
    add: Tensor
    multiply: Tensor


def is_prime(number: int) -> bool:
    """Whether a number is prime."""
    return number > 1 and all(number % k for k in range(2, int(number**0.5) + 1))


def prime_power(number: int) -> tuple[int, int] | None:
    """Return (p, k) with number = p**k and p prime, or None."""
    if number < 2:
        return None
    prime = next(k for k in range(2, number + 1) if number % k == 0)
    power = 0
    while number % prime == 0:
        number //= prime
        power += 1
    return (prime, power) if number == 1 else None


def field(order: int) -> Field:
    """Build GF(order).

    The modulus is the first irreducible polynomial in counting order: x^2+x+1 for GF(4), x^3+x+1
    for GF(8), x^2+1 for GF(9). (An interpretation: the paper names none.)

    Raises
    ------
    ValueError
        If the order is no prime power.
    """
    parts = prime_power(order)
    if parts is None:
        raise ValueError(f"a finite field needs a prime power as its order, got {order}")
    prime, degree = parts
    digits = [_digits(element, prime, degree) for element in range(order)]
    modulus = _irreducible(prime, degree)
    add = [[_number([(x + y) % prime for x, y in zip(a, b, strict=True)], prime) for b in digits]
           for a in digits]  # fmt: skip
    multiply = [[_number(_product(a, b, modulus, prime), prime) for b in digits] for a in digits]
    return Field(order, torch.tensor(add), torch.tensor(multiply))


def _digits(number: int, base: int, count: int) -> list[int]:
    return [number // base**k % base for k in range(count)]


def _number(digits: list[int], base: int) -> int:
    return sum(digit * base**k for k, digit in enumerate(digits))


def _product(a: list[int], b: list[int], modulus: list[int], prime: int) -> list[int]:
    """Multiply two polynomials and reduce by the monic modulus (its lower coefficients)."""
    degree = len(modulus)
    product = [0] * (2 * degree - 1)
    for (i, x), (j, y) in itertools.product(enumerate(a), enumerate(b)):
        product[i + j] = (product[i + j] + x * y) % prime
    # From the top down: x^degree is minus the lower part of the monic modulus.
    for top in range(len(product) - 1, degree - 1, -1):
        for k, coefficient in enumerate(modulus):
            place = top - degree + k
            product[place] = (product[place] - product[top] * coefficient) % prime
    return product[:degree]


def _irreducible(prime: int, degree: int) -> list[int]:
    """Return the lower coefficients of the first monic polynomial that gives no zero divisors."""
    elements = [_digits(element, prime, degree) for element in range(1, prime**degree)]
    for tail in range(prime**degree):
        modulus = _digits(tail, prime, degree)
        pairs = itertools.combinations_with_replacement(elements, 2)
        # By trial of all products: the orders in use are small.
        if all(any(_product(a, b, modulus, prime)) for a, b in pairs):
            return modulus
    raise AssertionError(f"no irreducible polynomial of degree {degree} over GF({prime})")
