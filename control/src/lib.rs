//! Tulle's control plane: sources, translation, xDS and the CA.
