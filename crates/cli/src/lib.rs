//! The tulle program: demo, sandbox, inject, and every role.
