//! The keeper and the scribe as real processes, with real containers: what they promise, and who may be killed when.

mod disks;
mod faults;
mod figures;
mod node;
mod streams;
