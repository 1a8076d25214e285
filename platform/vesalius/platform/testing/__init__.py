"""Contract suites shipped with the package: a new method, layout or store passes them by existing.

============= =====================================================================================
``methods``   what every method must keep: exact resume, workers that agree, scores that repeat;
              ``training_runs`` are the tiny trainings it breaks off and compares
``layouts``   what every folder layout must keep, on the small raw tree it writes itself
``store``     what every cohort store must hold to, a kill at any point included
``faults``    a writer stopped, killed, or out of disk space at every single file-system step
============= =====================================================================================

Nothing here is imported by the rest of the package.
"""
