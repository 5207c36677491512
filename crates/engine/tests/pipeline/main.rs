//! The pipeline over a machine in memory that can fail at any step, and that checks at each call
//! what the engine owes to a platform.

#[cfg(test)]
mod batches;
#[cfg(test)]
mod deferral;
#[cfg(test)]
mod exchange;
#[cfg(test)]
mod exchange_properties;
#[cfg(test)]
mod machine;
#[cfg(test)]
mod owners;
#[cfg(test)]
mod panics;
#[cfg(test)]
mod policy;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod witness;
