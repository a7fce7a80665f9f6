//! Who is connected where in this process: at most one connection per device, and the newer wins [MQTT-3.1.4-2].
//!
//! Shared by all cores and locked, but touched only when a device comes or goes, never for a message.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use gateway_core::message::DeviceId;

const SHARDS: usize = 16;

/// Names one connection of the process, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which core serves it.
    pub core: u16,
    /// Its key in that core's roster; used again after it is gone.
    pub key: u32,
    /// Never used again.
    pub serial: u64,
}

/// The map from device to connection.
#[derive(Debug)]
pub struct Presence {
    shards: [Mutex<HashMap<DeviceId, Place>>; SHARDS],
    hasher: RandomState,
    serials: AtomicU64,
}

impl Presence {
    /// Nobody is connected.
    pub fn new() -> Self {
        Self { shards: Default::default(), hasher: RandomState::new(), serials: AtomicU64::new(1) }
    }

    /// A serial number for a new connection.
    pub fn next_serial(&self) -> u64 {
        self.serials.fetch_add(1, Relaxed)
    }

    /// `device` is connected at `place` from now on; gives the connection that has to go.
    pub fn enter(&self, device: &DeviceId, place: Place) -> Option<Place> {
        self.shard(device).lock().unwrap_or_else(PoisonError::into_inner).insert(device.clone(), place)
    }

    /// The connection at `place` is gone; does nothing if a newer one took over.
    pub fn leave(&self, device: &DeviceId, place: Place) {
        let mut shard = self.shard(device).lock().unwrap_or_else(PoisonError::into_inner);
        if shard.get(device) == Some(&place) {
            shard.remove(device);
            if shard.len() * 4 < shard.capacity() {
                shard.shrink_to_fit();
            }
        }
    }

    fn shard(&self, device: &DeviceId) -> &Mutex<HashMap<DeviceId, Place>> {
        &self.shards[self.hasher.hash_one(device) as usize % SHARDS]
    }
}

impl Default for Presence {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use gateway_core::message::DeviceId;

    use super::{Place, Presence};

    #[test]
    fn mqtt_3_1_4_2_the_newer_connection_of_a_device_takes_over_and_the_older_leaves_nothing_behind() {
        let presence = Presence::new();
        let device = DeviceId::new("d", None).unwrap();
        let place = |core| Place { core, key: 7, serial: presence.next_serial() };
        let (old, new) = (place(0), place(1));
        assert_eq!(presence.enter(&device, old), None);
        assert_eq!(presence.enter(&device, new), Some(old));
        presence.leave(&device, old);
        assert_eq!(presence.enter(&device, place(0)), Some(new));
    }
}
