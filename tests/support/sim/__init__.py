"""A whole fleet in one thread, in no time: real engines on a simulated loop, clock, database and network, all of one
seed. Whatever the seed decides it decides again.

    plan (seed) ──▶ fleet: engines as processes that crash and freeze ──▶ world: one database, receivers, publishers
                                                                              │
                                                                              └──▶ record ──▶ tests.support.checker
"""
