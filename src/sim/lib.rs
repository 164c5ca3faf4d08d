//! A cluster in virtual time: many `mesh-proto` nodes, a faulty network between them, and the checks that hold after every step.
