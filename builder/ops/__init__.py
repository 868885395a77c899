"""Operations of model graphs, each with plain loops that define it: what models and lowering both stand on."""
