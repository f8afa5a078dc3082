//! From class names to class numbers.

use super::synsets;
use crate::dataset::Preset;

/// One label per name given, and what the labels mean.
#[derive(Debug, PartialEq)]
pub(crate) struct Numbering {
    pub labels: Vec<u32>,
    pub classes: u32,
    pub names: Vec<String>,
    pub preset: Option<Preset>,
}

/// Numbers classes in the order of their names' bytes, as torchvision's ImageFolder does. Names that are all WordNet ids
/// of ImageNet get ImageNet's own numbers (0 to 999) instead, unless `classes` is their count.
pub(crate) fn number(class_of_image: &[String], classes: Option<u32>) -> Result<Numbering, String> {
    let mut distinct: Vec<&String> = class_of_image.iter().collect();
    distinct.sort_unstable();
    distinct.dedup();
    let count = distinct.len() as u32;

    let imagenet: Option<Vec<u32>> = class_of_image.iter().map(|name| synsets::class(name)).collect();
    if let (Some(labels), None | Some(1000)) = (imagenet, classes) {
        return Ok(Numbering { labels, classes: 1000, names: synsets::names(), preset: Some(Preset::Imagenet) });
    }
    match classes {
        Some(classes) if classes != count => {
            return Err(format!(
                "holds {count} classes, but --classes says {classes}: their numbers would be a guess; give them with --labels"
            ));
        }
        _ if count < 2 => {
            return Err("holds one class; a classifier needs at least two. Give the numbers with --labels".into());
        }
        _ => {}
    }
    let labels =
        class_of_image.iter().map(|name| distinct.binary_search(&name).map_or(count, |class| class as u32)).collect();
    Ok(Numbering { labels, classes: count, names: distinct.into_iter().cloned().collect(), preset: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(names: &[&str], classes: Option<u32>) -> Result<Vec<u32>, String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        number(&names, classes).map(|numbering| numbering.labels)
    }

    #[test]
    fn names_are_numbered_in_byte_order() {
        assert_eq!(labels(&["dog", "cat", "dog", "10", "2"], None).unwrap(), [3, 2, 3, 0, 1]);
    }

    #[test]
    fn wordnet_ids_mean_imagenet_unless_their_count_is_given() {
        let ids = ["n02123159", "n01440764"];
        assert_eq!(labels(&ids, None).unwrap(), [282, 0]);
        assert_eq!(labels(&ids, Some(1000)).unwrap(), [282, 0]);
        assert_eq!(labels(&ids, Some(2)).unwrap(), [1, 0]);
    }

    #[test]
    fn a_count_that_disagrees_is_refused() {
        assert!(labels(&["cat", "dog"], Some(3)).unwrap_err().contains("--labels"));
        assert!(labels(&["cat", "cat"], None).is_err());
    }
}
