//! Converges what is wanted with what is there.
