//! (postgres)
