"""What teachers say of documents: labels, their files, other projects' formats."""
