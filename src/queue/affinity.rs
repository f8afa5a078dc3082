//! Preferring the model that is loaded, without starving others.

use uuid::Uuid;

/// Shards in a row that a worker may take by preference, about a minute each. Whatever is equal to them in priority and fairness, and
/// older, waits for no more of them than that.
pub const MOST_IN_A_ROW: u32 = 8;

/// Which model a worker has loaded, and how often it has been preferred.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Affinity {
    loaded: Option<(Uuid, u32)>,
}

impl Affinity {
    /// The model to prefer in the next claim; none when the others' turn has come.
    pub fn prefers(&self) -> Option<Uuid> {
        self.loaded.and_then(|(model, in_a_row)| (in_a_row < MOST_IN_A_ROW).then_some(model))
    }

    /// A shard of this model was claimed, and the model will be loaded.
    pub fn took(&mut self, model: Uuid) {
        let in_a_row = match self.loaded {
            Some((loaded, n)) if loaded == model && n < MOST_IN_A_ROW => n + 1,
            // Another model, or nobody else wanted the turn.
            _ => 1,
        };
        self.loaded = Some((model, in_a_row));
    }

    /// No model is loaded any more.
    pub fn forget(&mut self) {
        self.loaded = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ninth_turn_is_everybodys() {
        let (mut affinity, model) = (Affinity::default(), Uuid::from_u128(1));
        assert_eq!(affinity.prefers(), None);
        let turns: Vec<bool> = (0..27)
            .map(|_| {
                let open = affinity.prefers().is_none();
                affinity.took(model);
                open
            })
            .collect();
        let open: Vec<usize> = (0..27).filter(|&turn| turns[turn]).collect();
        assert_eq!(open, [0, 8, 16, 24]);
        affinity.took(Uuid::from_u128(2));
        assert_eq!(affinity.prefers(), Some(Uuid::from_u128(2)));
        affinity.forget();
        assert_eq!(affinity.prefers(), None);
    }
}
