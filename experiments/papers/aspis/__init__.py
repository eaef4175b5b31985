"""Konstantinidis, Ramamoorthy: Aspis (ISIT 2022), Aspis+ (ToN 2023), ByzShield (MLSys 2021)."""
