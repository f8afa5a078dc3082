//! Restarts and targets: the runs of an attack.

use super::{Entry, Goal};
use crate::protocol::{Loss, Targeted, Untargeted};

/// Restarts of an attack, each once, or once per target: run r is restart r / targets at target r mod targets.
#[derive(Debug, Clone, Copy)]
pub struct Runs {
    pub loss: Loss,
    pub restarts: u32,
    /// How many of the likeliest wrong classes to steer to, one after another; `None`: untargeted.
    pub targets: Option<u32>,
}

impl Runs {
    pub fn untargeted(loss: Loss, attack: &Untargeted) -> Self {
        Self { loss, restarts: attack.restarts, targets: None }
    }

    pub fn targeted(loss: Loss, attack: &Targeted) -> Self {
        Self { loss, restarts: attack.restarts, targets: Some(attack.targets) }
    }

    /// A model of few classes has fewer targets than were asked for.
    fn targets(&self, entry: &Entry) -> u32 {
        self.targets.map_or(1, |targets| targets.min(entry.ranking.len() as u32).max(1))
    }

    /// Which restart the entry's run is part of.
    pub fn restart(&self, entry: &Entry) -> u32 {
        entry.run / self.targets(entry)
    }

    pub fn goal(&self, entry: &Entry) -> Goal {
        let target = self.targets.and_then(|_| entry.ranking.get((entry.run % self.targets(entry)) as usize).copied());
        Goal { loss: self.loss, target, float32_gradient: false }
    }

    /// The run after the entry's.
    pub fn next(&self, entry: &Entry) -> Option<u32> {
        (entry.run + 1 < self.restarts * self.targets(entry)).then_some(entry.run + 1)
    }
}
