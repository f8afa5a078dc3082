//! The 1,000 classes of ImageNet (ILSVRC 2012): WordNet ids in class order, with their names.

use std::sync::LazyLock;

/// One line per class: WordNet id, blank, name. Class order is the order of the ids.
static LINES: LazyLock<Vec<(&str, &str)>> = LazyLock::new(|| {
    include_str!("../../../data/imagenet/synsets.txt").lines().filter_map(|line| line.split_once(' ')).collect()
});

/// The class of a WordNet id.
pub(crate) fn class(id: &str) -> Option<u32> {
    LINES.binary_search_by_key(&id, |(id, _)| id).ok().map(|class| class as u32)
}

/// Names in class order.
pub(crate) fn names() -> Vec<String> {
    LINES.iter().map(|(_, name)| (*name).to_owned()).collect()
}

/// The WordNet id that begins a file name such as `n01514668_cock.JPEG`.
pub(crate) fn id_in(name: &str) -> Option<&str> {
    let id = name.split(['_', '.']).next()?;
    (id.len() == 9 && id.starts_with('n') && id[1..].bytes().all(|b| b.is_ascii_digit())).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thousand_ids_are_in_class_order() {
        assert_eq!(LINES.len(), 1000);
        assert!(LINES.is_sorted_by(|a, b| a.0 < b.0));
        // Well-known numbers of the usual class index.
        assert_eq!((class("n01440764"), class("n02123159"), class("n15075141")), (Some(0), Some(282), Some(999)));
        assert_eq!(class("n00000000"), None);
    }

    #[test]
    fn ids_are_found_in_file_names() {
        assert_eq!(id_in("n01514668_cock.JPEG"), Some("n01514668"));
        assert_eq!(id_in("n01514668"), Some("n01514668"));
        for other in ["cock.JPEG", "n0151466_x.png", "nature12_x.png", "é", ""] {
            assert_eq!(id_in(other), None, "{other}");
        }
    }
}
