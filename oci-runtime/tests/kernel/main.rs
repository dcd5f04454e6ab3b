//! Containers on this kernel, through the command line. Needs root and busybox-static.

mod attacks;
mod bundle;
mod exec;
mod faults;
mod filesystem;
mod lifecycle;
mod limits;
mod mounts;
mod network;
mod process;
mod rootless;
mod upstream;
